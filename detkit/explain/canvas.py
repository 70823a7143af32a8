"""What the images of an explanation are drawn with: an enlarged image, and panels with a legend."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from detkit.viz.draw import INK, PAPER, Colour, font_of, outline, shorten, write_name
from detkit.viz.sheet import mosaic

SIDE = 960  # pixels of an image's longer side
PANEL = 560  # of one among several
CROWD = 30  # boxes, above which their lines are thinner
TINT = 0.85  # opacity of a map at 1
DARK = 0.5  # how much of the image's light is left below thin lines

TRUTH: Colour = (255, 255, 255)
NEGATIVE: Colour = (165, 175, 190)
PROPOSAL: Colour = (190, 230, 255)
HEAT: Colour = (255, 120, 0)

Kind = Literal["solid", "dashed", "fill"]


@dataclass(frozen=True)
class Key:
    """An entry of a legend."""

    shade: Colour
    kind: Kind
    text: str


@dataclass(frozen=True)
class Panel:
    """One image, (H, W, 3) uint8, with what is said below it."""

    drawing: NDArray[np.uint8]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One step of a detector, drawn.

    name: fit for a file; text: what happened, in numbers of this image. wide: whether each panel has a row to itself.
    """

    name: str
    title: str
    text: str
    panels: list[Panel]
    legend: list[Key] = field(default_factory=list)
    wide: bool = False

    def sheet(self) -> NDArray[np.uint8]:
        """Return all of it as one image: panels with their captions, the legend below."""
        drawings, captions = zip(*((panel.drawing, panel.caption) for panel in self.panels))
        columns = 1 if self.wide else min(3, math.ceil(math.sqrt(len(drawings))))
        drawing = drawings[0] if len(drawings) == 1 else mosaic(drawings, captions, columns)
        return _with_legend(drawing, self.legend)


class Canvas:
    """An image enlarged to draw on. All coordinates are pixels of the image."""

    def __init__(self, image: ArrayLike, side: int = SIDE, light: float = 1.0, window: ArrayLike | None = None) -> None:
        """Scale the image up.

        side: pixels that the longer side gets; light: 1 leaves the image as it is. window: the part that is shown,
        xyxy, by default all; what of it lies outside the image is grey.
        """
        image = np.asarray(image, np.uint8)
        height, width = image.shape[:2]
        left, top, right, bottom = (0, 0, width, height) if window is None else np.asarray(window, float).tolist()
        left, top = math.floor(left), math.floor(top)
        size = max(math.ceil(right) - left, 1), max(math.ceil(bottom) - top, 1)
        part = Image.new("RGB", size, (128, 128, 128))
        part.paste(Image.fromarray(np.ascontiguousarray(image)), (-left, -top))
        self.factor = side / max(size)
        self.origin = np.array([left, top, left, top], float)
        lit = part.point([int(value * light) for value in range(256)] * 3)
        scaled = max(1, round(size[0] * self.factor)), max(1, round(size[1] * self.factor))
        self._canvas = lit.resize(scaled, Image.Resampling.BICUBIC).convert("RGBA")
        self.line = max(2, round(side / 320))
        self.font = font_of(max(14, round(side / 34)))
        self._names: list[tuple[NDArray, str, Colour]] = []

    def box(self, box: ArrayLike, shade: Colour, width: float = 1.0, dashed: bool = False, alpha: float = 1.0) -> None:
        """Draw an outline; width: in thin lines."""
        with self._layer() if alpha < 1 else nullcontext(ImageDraw.Draw(self._canvas)) as pen:
            outline(pen, self._scaled(box), max(1, round(self.line * width)), _ink(shade, alpha), dashed)

    def boxes(self, boxes: ArrayLike, shades: Sequence[Colour], alphas: Sequence[float]) -> None:
        """Draw many thin outlines, the last on top."""
        line = self.line if len(shades) <= CROWD else max(1, self.line - 1)
        with self._layer() as pen:
            for box, shade, alpha in zip(np.asarray(boxes), shades, alphas):
                outline(pen, self._scaled(box), line, _ink(shade, alpha), False)

    def truth(self, box: ArrayLike, name: str | None = None) -> None:
        """Draw an object: dashed white on black, so that it shows on any image."""
        self.box(box, INK)
        self.box(box, TRUTH, dashed=True)
        if name is not None:
            self.name(box, name, TRUTH)

    def fill(self, box: ArrayLike, shade: Colour, alpha: float) -> None:
        """Tint a part of the image."""
        x1, y1, x2, y2 = (round(edge) for edge in self._scaled(box).tolist())
        with self._layer() as pen:
            pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), fill=_ink(shade, alpha))

    def tint(self, values: NDArray, box: ArrayLike, shade: Colour) -> None:
        """Lay a map (h, w) of values from 0 to 1 over a part of the image, its cells as squares."""
        x1, y1, x2, y2 = (round(edge) for edge in self._scaled(box).tolist())
        mask = Image.fromarray(np.round(np.clip(values, 0, 1) * 255 * TINT).astype(np.uint8))
        with self._layer() as pen:
            pen.bitmap((x1, y1), mask.resize((max(1, x2 - x1), max(1, y2 - y1)), Image.Resampling.NEAREST), shade)

    def grid(self, rows: int, columns: int, box: ArrayLike, alpha: float = 0.45) -> None:
        """Draw the lines between rows x columns cells of a part of the image."""
        x1, y1, x2, y2 = self._scaled(box).tolist()
        with self._layer() as pen:
            for x in np.linspace(x1, x2, columns + 1).round().tolist():
                pen.line((x, y1, x, y2), _ink(PAPER, alpha), 1)
            for y in np.linspace(y1, y2, rows + 1).round().tolist():
                pen.line((x1, y, x2, y), _ink(PAPER, alpha), 1)

    def dot(self, point: ArrayLike, shade: Colour) -> None:
        left, top = ((np.asarray(point) - self.origin[:2]) * self.factor).tolist()
        size = 2 * self.line
        ImageDraw.Draw(self._canvas).ellipse((left - size, top - size, left + size, top + size), shade, INK)

    def name(self, box: ArrayLike, text: str, shade: Colour) -> None:
        """Write a box's name, when all is drawn; the first has the first choice of places."""
        self._names.append((self._scaled(box), text, shade))

    def drawing(self) -> NDArray[np.uint8]:
        canvas = self._canvas.convert("RGB")
        pen, placed = ImageDraw.Draw(canvas), []
        for box, text, shade in self._names:
            write_name(pen, text, box, self.line, self.font, shade, False, placed)
        return np.array(canvas)

    @contextmanager
    def _layer(self) -> Iterator[ImageDraw.ImageDraw]:
        """Yield what draws on a transparent layer, which is then laid over the image."""
        layer = Image.new("RGBA", self._canvas.size)
        yield ImageDraw.Draw(layer)
        self._canvas.alpha_composite(layer)

    def _scaled(self, box: ArrayLike) -> NDArray:
        return (np.asarray(box, np.float64) - self.origin) * self.factor


def _ink(shade: Colour, alpha: float) -> tuple[int, ...]:
    return (*shade, round(255 * min(alpha, 1.0)))


def panel_side(panels: int) -> int:
    """Pixels of the longer side of each of so many panels."""
    return SIDE if panels <= 1 else PANEL


def square_around(boxes: NDArray, margin: float, min_side: float) -> NDArray:
    """The square around boxes (N, 4), with a margin in shares of its side, at least `min_side` pixels a side."""
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    half = max(float((high - low).max()) * (1 + 2 * margin), min_side) / 2
    centre = (low + high) / 2
    return np.concatenate((centre - half, centre + half))


def _with_legend(drawing: NDArray[np.uint8], legend: Sequence[Key]) -> NDArray[np.uint8]:
    """The image with a strip below that explains its colours."""
    if not legend:
        return drawing
    width = drawing.shape[1]
    font = font_of(max(13, round(min(width, SIDE) / 42)))
    row, mark, gap = round(font.size * 1.7), round(font.size * 2.2), round(font.size * 0.6)
    places, x, y = [], gap, gap
    for key in legend:
        text = shorten(key.text, font, width - mark - 3 * gap)
        wide = mark + gap + font.getlength(text)
        if x > gap and x + wide > width - gap:
            x, y = gap, y + row
        places.append((x, y, text))
        x += round(wide) + 2 * gap
    sheet = Image.new("RGB", (width, drawing.shape[0] + y + row), (48, 52, 58))
    sheet.paste(Image.fromarray(drawing), (0, 0))
    pen = ImageDraw.Draw(sheet)
    for key, (x, y, text) in zip(legend, places):
        top = drawing.shape[0] + y
        if key.kind == "fill":
            pen.rectangle((x, top, x + mark, top + font.size), fill=key.shade)
        else:
            outline(pen, np.array([x, top, x + mark, top + font.size]), 2, key.shade, key.kind == "dashed")
        pen.text((x + mark + gap, top - font.size * 0.1), text, PAPER, font)
    return np.array(sheet)
