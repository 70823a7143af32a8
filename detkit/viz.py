"""Pictures: boxes on photos, mosaics, loss curves, precision and recall.

Photos are (H, W, 3) uint8 RGB arrays and are never changed in place. Boxes are continuous xyxy in pixels.
"""

import colorsys
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detkit.files import save_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

    from detkit.evaluation import VOCResult

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

# bright enough for dark photos and dark enough for white paper; neighbours differ in hue
PALETTE: tuple[Colour, ...] = (
    *((230, 57, 70), (0, 119, 214), (255, 176, 0), (46, 160, 67), (157, 88, 232)),
    *((0, 180, 190), (247, 127, 0), (236, 72, 153), (128, 185, 24), (160, 100, 64)),
    *((95, 205, 130), (200, 30, 110), (70, 170, 255), (215, 195, 30), (125, 110, 255)),
    *((20, 200, 80), (255, 120, 100), (60, 100, 200), (190, 230, 60), (240, 110, 240)),
)
INK: Colour = (20, 20, 20)
PAPER: Colour = (255, 255, 255)
# pictures of objects shown beside each other are enlarged to this many pixels, so that names can be read
READABLE = 400


def colour(index: int) -> Colour:
    """Return the RGB colour of class `index`, always the same one; no two classes share it."""
    if index < len(PALETTE):
        return PALETTE[index]
    # beyond the palette: hues a golden ratio apart never meet again; three tones set neighbours further apart
    hue = (0.11 + index * 0.618034) % 1
    saturation, value = ((0.85, 0.9), (0.55, 1.0), (0.9, 0.7))[index % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(
    image: ArrayLike,
    boxes: Any,
    labels: Any,
    classes: Sequence[str],
    scores: Any = None,
    ignore: Any = None,
) -> NDArray[np.uint8]:
    """Return a copy of the image with its boxes, each with the name of its class and its score.

    image: (H, W, 3) uint8 RGB. boxes: (N, 4); labels: (N,), -1 = padding, not drawn; scores: (N,), the best is drawn
    on top; ignore: (N,) bool, those boxes are dashed and their names dimmed. Tensors on any device, arrays or lists.
    """
    from PIL import Image, ImageDraw

    boxes = _array(boxes, np.float64).reshape(-1, 4)
    labels = _array(labels, np.int64).reshape(-1)
    values = None if scores is None else _array(scores, np.float64).reshape(-1)
    dashed = np.zeros(len(labels), bool) if ignore is None else _array(ignore, bool).reshape(-1)
    canvas = Image.fromarray(np.ascontiguousarray(_array(image, np.uint8)))
    pen = ImageDraw.Draw(canvas)
    line = max(1, round(math.hypot(*canvas.size) / 300))
    font = _font(max(11, round(math.hypot(*canvas.size) / 42)))

    shown = [row for row in range(len(labels)) if labels[row] >= 0]
    if values is not None:
        shown.sort(key=lambda row: values[row])
    for row in shown:
        _outline(pen, boxes[row], line, colour(int(labels[row])), bool(dashed[row]))
    placed: list[Box] = []
    # names last, so that no line crosses them; the best first, so that it has the first choice of places
    for row in reversed(shown):
        name = str(classes[labels[row]])
        text = name if values is None else f"{name} {values[row]:.2f}"
        _name(pen, text, boxes[row], line, font, colour(int(labels[row])), bool(dashed[row]), placed)
    return np.array(canvas)


def draw_pair(
    image: ArrayLike, truth: Mapping[str, Any], found: Mapping[str, Any], classes: Sequence[str]
) -> NDArray[np.uint8]:
    """Return the ground truth beside the detections of one photo; small photos are enlarged.

    truth: boxes (N, 4), labels (N,) and perhaps ignore (N,); found: boxes (M, 4), labels (M,) and scores (M,).
    """
    image = _array(image, np.uint8)
    pictures = []
    for objects in (truth, found):
        picture, factor = _enlarge(image, READABLE)
        boxes = _array(objects["boxes"], np.float64).reshape(-1, 4) * factor
        scores, ignore = objects.get("scores"), objects.get("ignore")
        pictures.append(draw(picture, boxes, objects["labels"], classes, scores, ignore))
    return mosaic(pictures, ("ground truth", "detections"), columns=2)


def mosaic(
    images: Sequence[ArrayLike], titles: Sequence[str] | None = None, columns: int | None = None
) -> NDArray[np.uint8]:
    """Return the images in rows, each with its title above.

    Images are scaled to fit a common cell, as wide as the widest and as high as the highest of them. columns: by
    default as many as make the whole about square.
    """
    from PIL import Image, ImageDraw

    pictures = [_array(image, np.uint8) for image in images]
    if not pictures:
        raise ValueError("mosaic: expected at least one image")
    if columns is None:
        columns = math.ceil(math.sqrt(len(pictures)))
    columns = min(columns, len(pictures))
    width = max(picture.shape[1] for picture in pictures)
    height = max(picture.shape[0] for picture in pictures)
    factors = [min(width / picture.shape[1], height / picture.shape[0]) for picture in pictures]
    sizes = [(round(p.shape[1] * f) or 1, round(p.shape[0] * f) or 1) for p, f in zip(pictures, factors)]
    gap = max(4, round(width / 80))
    font = _font(max(12, round(width / 30)))
    head = round(font.size * 1.6) if titles else 0
    heights = [max(size[1] for size in sizes[at : at + columns]) for at in range(0, len(sizes), columns)]

    sheet = Image.new("RGB", (columns * (width + gap) + gap, sum(heights) + len(heights) * (head + gap) + gap), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (picture, size) in enumerate(zip(pictures, sizes)):
        row, column = divmod(place, columns)
        left = gap + column * (width + gap)
        top = gap + sum(heights[:row]) + row * (head + gap)
        fitted = Image.fromarray(np.ascontiguousarray(picture))
        if size != fitted.size:
            fitted = fitted.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(fitted, (left + (width - size[0]) // 2, top + head + (heights[row] - size[1]) // 2))
        if titles:
            title = _shorten(titles[place], font, width)
            pen.text((left + width / 2, top + head / 2), title, INK, font, anchor="mm")
    return np.array(sheet)


def loss_plot(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw a training log: the loss and its parts, mAP where it was measured, and the learning rate.

    records: those of log.jsonl, in order. Each has `iteration`; those of training have `loss`, then its parts, then
    `lr`; those of an evaluation have `mAP`, null where there was nothing to find.
    """
    training = [record for record in records if "loss" in record]
    measured = [record for record in records if record.get("mAP") is not None]
    figure = _figure(9, 7 if measured else 5.5)
    ratios = [3, 2, 1] if measured else [3, 1]
    panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    where = [record["iteration"] for record in training]

    top = panels[0]
    for index, key in enumerate(["loss", *_parts(training)] if training else []):
        values = np.array([record.get(key, np.nan) for record in training], np.float64)
        shade = "#222222" if key == "loss" else _hex(colour(index - 1))
        top.plot(where, values, color=shade, alpha=0.25, linewidth=0.8)
        top.plot(where, _smooth(values), color=shade, linewidth=2 if key == "loss" else 1.5, label=key)
    positive = [record["loss"] for record in training if record["loss"] > 0]
    if positive and max(positive) > 20 * min(positive):
        top.set_yscale("log")
    top.set_ylabel("loss")
    if training:
        top.legend(loc="upper right", edgecolor="none")

    if measured:
        points = [record["iteration"] for record in measured]
        values = [record["mAP"] for record in measured]
        panels[1].plot(points, values, "o-", color=_hex(colour(1)), markersize=4)
        panels[1].annotate(
            f"{values[-1]:.3f}", (points[-1], values[-1]), (0, 6), textcoords="offset points", ha="right"
        )
        panels[1].set(ylabel="mAP", ylim=(0, 1.05))
    rates = [record["lr"] for record in training if "lr" in record]
    panels[-1].plot([record["iteration"] for record in training if "lr" in record], rates, color="#666666")
    panels[-1].set(ylabel="learning rate", xlabel="iteration", ylim=(0, 1.1 * max(rates, default=1.0)))
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    for panel in panels:
        _tidy(panel)
    _save(figure, path)


def pr_plot(result: "VOCResult", path: str | Path) -> None:
    """Draw precision against recall of all classes in one picture, the best class first in its legend."""
    names = _by_ap(result)
    figure = _figure(10, 6.5)
    axes = figure.add_subplot()
    for index in names:
        recall, precision = _envelope(result, index)
        style = ("-", "--", ":")[index // len(PALETTE) % 3]
        label = f"{result.classes[index]}  {float(result.ap[index]):.3f}"
        axes.plot(recall, precision, style, color=_hex(colour(index)), linewidth=1.5, label=label)
    axes.set_title(f"mAP {result.mAP:.4f}\n{result.protocol}, {result.images} images", fontsize=10)
    _pr_axes(axes)
    if names:
        columns = math.ceil(len(names) / 30)
        axes.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, ncols=columns, title="class  AP"
        )
    _save(figure, path)


def pr_plots(result: "VOCResult", folder: str | Path) -> list[Path]:
    """Write `all.png` and one `<class>.png` for each class with objects into `folder`; return their paths.

    A class's picture has the curve as measured, its envelope, the area or the 11 points that AP is taken from, and the
    scores at some of its points.
    """
    folder = Path(folder)
    paths = [folder / "all.png"]
    pr_plot(result, paths[0])
    for index in _by_ap(result):
        paths.append(folder / (re.sub(r"[^\w.+ -]", "_", result.classes[index]) + ".png"))
        _class_plot(result, index, paths[-1])
    return paths


def _class_plot(result: "VOCResult", index: int, path: Path) -> None:
    shade = _hex(colour(index))
    recall, precision, scores = (part.double().cpu().numpy() for part in result.curve(index))
    figure = _figure(6.5, 5)
    axes = figure.add_subplot()
    axes.plot(recall, precision, color=shade, alpha=0.45, linewidth=1, label="measured")
    steps, envelope = _envelope(result, index)
    axes.plot(steps, envelope, color=shade, linewidth=2, label="envelope")
    if result.metric == "voc07":
        levels = np.arange(11) * 0.1
        best = [max(precision[recall >= level], default=0.0) for level in levels]
        axes.plot(levels, best, "o", color=_hex(INK), markersize=4, label="11 points")
    else:
        axes.fill_between(steps, envelope, color=shade, alpha=0.12)
    for threshold in (0.9, 0.7, 0.5, 0.3, 0.1):
        reached = int((scores >= threshold).sum())
        if 0 < reached < len(scores):
            spot = recall[reached - 1], precision[reached - 1]
            axes.plot(*spot, "s", color=shade, markersize=4)
            axes.annotate(f"score {threshold:g}", spot, (5, 4), textcoords="offset points", fontsize=7, color="#444444")
    ap, found, npos = (float(part[index]) for part in (result.ap, result.found, result.npos))
    title = f"{result.classes[index]}: AP {ap:.4f}, {found:.0f} of {npos:.0f} objects found"
    axes.set_title(f"{title}\n{result.protocol}", fontsize=9)
    _pr_axes(axes)
    axes.legend(loc="lower left", frameon=False, fontsize=8)
    _save(figure, path)


def _by_ap(result: "VOCResult") -> list[int]:
    """Classes that have an AP, the best first."""
    values = result.ap.tolist()
    return sorted((index for index, ap in enumerate(values) if ap == ap), key=lambda index: -values[index])


def _envelope(result: "VOCResult", index: int) -> tuple[NDArray, NDArray]:
    """Corners of a class's precision envelope: the best precision at each recall or beyond, 0 where recall ends."""
    recall, precision, _ = (part.double().cpu().numpy() for part in result.curve(index))
    # recall only moves at true positives: between two of them the envelope is that of the right one
    rises = np.flatnonzero(np.diff(recall, prepend=0.0))
    recall, best = recall[rises], np.maximum.accumulate(precision[rises][::-1])[::-1]
    return np.repeat(np.append(0.0, recall), 2)[1:], np.append(np.repeat(best, 2), 0.0)


def _parts(training: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the parts of the loss: the keys between `loss` and `lr`."""
    keys = list(training[0]) if training else []
    return keys[keys.index("loss") + 1 : keys.index("lr")] if "lr" in keys else []


def _smooth(values: NDArray) -> NDArray:
    """Running mean over a fiftieth of the curve, with no lag at its ends."""
    span = max(1, len(values) // 50)
    kernel = np.ones(2 * span + 1)
    real = np.isfinite(values)
    total = np.convolve(np.where(real, values, 0.0), kernel, "full")[span : span + len(values)]
    weight = np.convolve(real.astype(float), kernel, "full")[span : span + len(values)]
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0)


def _figure(width: float, height: float) -> "Figure":
    """A matplotlib figure without pyplot, which keeps figures alive and may want a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: "Axes") -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _pr_axes(axes: "Axes") -> None:
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    _tidy(axes)


def _save(figure: "Figure", path: str | Path) -> None:
    save_atomic(path, figure.savefig)


def _hex(shade: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*shade)


def _array(values: Any, dtype: Any) -> NDArray:
    """Tensor on any device, array or list -> numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype)


@functools.lru_cache(16)
def _font(size: int) -> "FreeTypeFont":
    """DejaVu Sans, which comes with matplotlib and has Latin, Greek and Cyrillic letters."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _shorten(text: str, font: "FreeTypeFont", width: float) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    return text


def _enlarge(image: NDArray, least: int) -> tuple[NDArray, float]:
    """Scale an image up so that its longer side has at least `least` pixels; return it and the factor."""
    from PIL import Image

    factor = least / max(image.shape[:2])
    if factor <= 1:
        return image, 1.0
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BICUBIC)), factor


def _outline(pen: "ImageDraw", box: NDArray, line: int, shade: Colour, dashed: bool) -> None:
    """Draw a box's outline inside its edges, clipped to the picture."""
    x1, y1, x2, y2 = _inside(pen, box)
    if not dashed:
        pen.rectangle((x1, y1, x2, y2), outline=shade, width=line)
        return
    dash = 4 * line
    for start, stop, across, along in (
        (x1, x2, (y1, y2 - line + 1), "x"),
        (y1, y2, (x1, x2 - line + 1), "y"),
    ):
        for edge in across:
            for at in range(start, stop + 1, 2 * dash):
                end = min(at + dash - 1, stop)
                low, high = (at, edge), (end, edge + line - 1)
                pen.rectangle((*low, *high) if along == "x" else (*low[::-1], *high[::-1]), fill=shade)


def _inside(pen: "ImageDraw", box: NDArray) -> tuple[int, int, int, int]:
    """First and last pixel of a box, ordered and within the picture."""
    width, height = pen.im.size
    limits = np.array([width, height, width, height]) - 1
    x1, y1, x2, y2 = np.clip(np.nan_to_num(np.round(box)) - (0, 0, 1, 1), 0, limits).astype(int).tolist()
    return x1, y1, max(x1, x2), max(y1, y2)


def _name(
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
    limit = pen.im.size
    pad = max(1, round(font.size / 6))
    text = _shorten(text, font, limit[0] - 2 * pad)
    width = font.getlength(text) + 2 * pad
    ascent, descent = font.getmetrics()
    height = ascent + descent
    x1, y1, x2, y2 = _inside(pen, box)
    spots = [
        (x1, y1 - height),
        (x1, y1),
        (x2 - width, y1 - height),
        (x1, y2),
        (x2 - width, y2 - height),
        (x1, y2 - height),
    ]
    places = []
    for left, top in spots:
        left = min(max(left, 0), max(limit[0] - width, 0))
        if 0 <= top <= limit[1] - height:
            places.append((left, top, left + width, top + height))
    if not places:
        left = min(max(x1, 0), max(limit[0] - width, 0))
        places.append((left, 0, left + width, height))
    place = min(places, key=lambda place: sum(_overlap(place, other) for other in placed))
    placed.append(place)
    fill = _mix(shade, PAPER, 0.65) if dimmed else shade
    pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=fill)
    bright = 0.299 * fill[0] + 0.587 * fill[1] + 0.114 * fill[2] > 140
    pen.text((place[0] + pad, place[1]), text, INK if bright else PAPER, font)


def _overlap(a: Box, b: Box) -> float:
    """Area that two boxes share."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(x * (1 - share) + y * share) for x, y in zip(a, b))
    return red, green, blue
