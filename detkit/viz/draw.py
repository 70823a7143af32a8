"""Boxes and names drawn on images."""

import colorsys
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detkit.names import shown

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

# bright enough for dark images and dark enough for white paper; neighbours differ in hue
PALETTE: tuple[Colour, ...] = (
    *((230, 57, 70), (0, 119, 214), (255, 176, 0), (46, 160, 67), (157, 88, 232)),
    *((0, 180, 190), (247, 127, 0), (236, 72, 153), (128, 185, 24), (160, 100, 64)),
    *((95, 205, 130), (200, 30, 110), (70, 170, 255), (215, 195, 30), (125, 110, 255)),
    *((20, 200, 80), (255, 120, 100), (60, 100, 200), (190, 230, 60), (240, 110, 240)),
)
TINT = 0.45  # how much of its class's colour a mask has
INK: Colour = (20, 20, 20)
PAPER: Colour = (255, 255, 255)


def colour(index: int) -> Colour:
    """Return the RGB colour of class `index`, always the same one; no two classes share it."""
    if index < len(PALETTE):
        return PALETTE[index]
    # beyond the palette: hues a golden ratio apart never meet again; three tones set neighbours further apart
    hue = (0.11 + index * 0.618034) % 1
    saturation, value = ((0.85, 0.9), (0.55, 1.0), (0.9, 0.7))[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def hex_code(shade: Colour) -> str:
    """RGB -> #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*shade)


def hex_colour(index: int) -> str:
    """Return the colour of class `index` as #rrggbb, in images, plots and pages alike."""
    return hex_code(colour(index))


def draw(
    image: ArrayLike,
    boxes: Any,
    labels: Any,
    classes: Sequence[str],
    scores: Any = None,
    ignore: Any = None,
    masks: Any = None,
) -> NDArray[np.uint8]:
    """Return a copy of the image with its boxes, each with the name of its class and its score.

    image: (H, W, 3) uint8 RGB. boxes: (N, 4); labels: (N,), -1 = padding, not drawn; scores: (N,), the best is drawn
    on top; ignore: (N,) bool, those boxes are dashed and their names dimmed; masks: (N, H, W) bool, of the boxes'
    objects, which are tinted with an edge. Tensors on any device, arrays or lists.
    """
    from PIL import Image, ImageDraw

    boxes = as_array(boxes, np.float64).reshape(-1, 4)
    labels = as_array(labels, np.int64).reshape(-1)
    values = None if scores is None else as_array(scores, np.float64).reshape(-1)
    dashed = np.zeros(len(labels), bool) if ignore is None else as_array(ignore, bool).reshape(-1)
    shown = [row for row in range(len(labels)) if labels[row] >= 0]
    if values is not None:
        shown.sort(key=lambda row: values[row])
    pixels = np.ascontiguousarray(as_array(image, np.uint8))
    if masks is not None:
        pixels = tint(pixels, as_array(masks, bool)[shown], [colour(int(labels[row])) for row in shown])
    canvas = Image.fromarray(pixels)
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(math.hypot(*canvas.size) / 300))
    font = font_of(max(11, round(math.hypot(*canvas.size) / 42)))

    for row in shown:
        outline(pen, boxes[row], line, colour(int(labels[row])), bool(dashed[row]))
    placed: list[Box] = []
    # names last, so that no line crosses them; the best first, so that it has the first choice of places
    for row in reversed(shown):
        name = str(classes[labels[row]])
        text = name if values is None else f"{name} {values[row]:.2f}"
        write_name(pen, text, boxes[row], line, font, colour(int(labels[row])), bool(dashed[row]), placed)
    return np.array(canvas)


def tint(image: NDArray[np.uint8], masks: NDArray[np.bool_], colours: Sequence[Colour]) -> NDArray[np.uint8]:
    """Return a copy of an image (H, W, 3) with masks (N, H, W) laid over it, the last on top, their edges opaque."""
    import cv2

    image = image.copy()
    for mask, shade in zip(masks, colours):
        edge = mask & (cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) == 0)
        image[mask] = np.round(image[mask] * (1 - TINT) + np.array(shade) * TINT)
        image[edge] = shade
    return image


def as_array(values: Any, dtype: Any) -> NDArray:
    """Tensor on any device, array or list -> numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype)


@functools.lru_cache(16)
def font_of(size: int) -> "FreeTypeFont":
    """DejaVu Sans, which comes with matplotlib and has Latin, Greek and Cyrillic letters."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def shorten(text: str, font: "FreeTypeFont", width: float) -> str:
    """Return text as it is shown, in one line, cut where it is wider than `width` pixels."""
    text = shown(text)
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    return text


def outline(pen: "ImageDraw", box: NDArray, line: int, shade: tuple[int, ...], dashed: bool) -> None:
    """Draw a box's outline inside its edges, clipped to the image."""
    x1, y1, x2, y2 = _inside(pen, box)
    if not dashed:
        pen.rectangle((x1, y1, x2, y2), outline=shade, width=line)
        return
    dash = 4 * line
    for x in range(x1, x2 + 1, 2 * dash):
        for y in (y1, y2 - line + 1):
            pen.rectangle((x, y, min(x + dash - 1, x2), y + line - 1), fill=shade)
    for y in range(y1, y2 + 1, 2 * dash):
        for x in (x1, x2 - line + 1):
            pen.rectangle((x, y, x + line - 1, min(y + dash - 1, y2)), fill=shade)


def _inside(pen: "ImageDraw", box: NDArray) -> tuple[int, int, int, int]:
    """First and last pixel of a box, ordered and within the image."""
    width, height = pen.im.size
    limits = np.array([width, height, width, height]) - 1
    x1, y1, x2, y2 = np.clip(np.nan_to_num(np.round(box)) - (0, 0, 1, 1), 0, limits).astype(int).tolist()
    return x1, y1, max(x1, x2), max(y1, y2)


def write_name(
    pen: "ImageDraw",
    text: str,
    box: NDArray,
    line: int,
    font: "FreeTypeFont",
    shade: Colour,
    dimmed: bool,
    placed: list[Box],
) -> None:
    """Write a box's name where it covers no other name, preferably above its top left corner."""
    limit_x, limit_y = pen.im.size
    pad = max(1, round(font.size / 6))
    text = shorten(text, font, limit_x - 2 * pad)
    width = font.getlength(text) + 2 * pad
    ascent, descent = font.getmetrics()
    height = ascent + descent
    x1, y1, x2, y2 = _inside(pen, box)
    above, below, inner, right = y1 - height, y2, y2 - height, x2 - width
    corners = [(x1, above), (x1, y1), (right, above), (x1, below), (right, inner), (x1, inner)]
    free = [(left, top) for left, top in corners if 0 <= top <= limit_y - height] or [(x1, 0)]
    starts = [(min(max(left, 0), max(limit_x - width, 0)), top) for left, top in free]
    spots = [(left, top, left + width, top + height) for left, top in starts]
    spot = min(spots, key=lambda spot: sum(_overlap(spot, other) for other in placed))
    placed.append(spot)
    red, green, blue = (round(0.35 * x + 0.65 * y) for x, y in zip(shade, PAPER)) if dimmed else shade
    pen.rectangle((spot[0], spot[1], spot[2] - 1, spot[3] - 1), fill=(red, green, blue))
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    pen.text((spot[0] + pad, spot[1]), text, INK if bright else PAPER, font)


def _overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
