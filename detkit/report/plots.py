"""Small plots as inline SVG, coloured by the page's style sheet."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from detkit.evaluation import VOCResult
    from detkit.evaluation.diagnosis import Calibration
    from detkit.viz.speed import SpeedPoint

WIDTH, HEIGHT = 520, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 42
POINTS = 160  # of a curve at most


def pr_plot(result: "VOCResult") -> str:
    """Draw the precision envelope of every class; a line's class is its `data-class`."""
    lines = []
    for index, ap in enumerate(result.ap.tolist()):
        if ap != ap:
            continue
        xs, ys = _envelope(result, index)
        name = escape(result.classes[index], quote=True)
        lines.append(
            f'<polyline class="curve" data-class="{index}" style="--hue:{hue(index)}" points="{_points(xs, ys)}">'
            f"<title>{name}: AP {ap:.3f}</title></polyline>"
        )
    text = f"Precision against recall of {len(lines)} classes"
    return _frame(text, "recall", "precision", (0, 1), (0, 1), "".join(lines))


def pr_comparison(results: Mapping[str, "VOCResult"]) -> str:
    """Draw the precision envelopes of several detectors, by class; the class of a line is its `data-class`.

    `mean` is the mean over classes of the envelopes, at each recall; it alone is not hidden. The lines of a detector
    are of the hue of its place.
    """
    lines = ""
    for place, (name, result) in enumerate(results.items()):
        known = [index for index, ap in enumerate(result.ap.tolist()) if ap == ap]
        curves = {"mean": _mean_envelope(result, known)} if known else {}
        curves |= {str(index): _envelope(result, index) for index in known}
        for key, (xs, ys) in curves.items():
            text = f"{name}: mAP {result.mAP:.3f}" if key == "mean" else f"{name}: AP {result.ap[int(key)]:.3f}"
            hidden = "" if key == "mean" else " hidden"
            lines += (
                f'<polyline class="curve" data-class="{key}" style="--hue:{even_hue(place, len(results))}"{hidden} '
                f'points="{_points(xs, ys)}"><title>{escape(text)}</title></polyline>'
            )
    text = f"Precision against recall of {len(results)} detectors"
    return _frame(text, "recall", "precision", (0, 1), (0, 1), lines)


def _envelope(result: "VOCResult", index: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a class's precision envelope, POINTS at most."""
    recall, precision, _ = (part.double().cpu().numpy() for part in result.curve(index))
    best = np.maximum.accumulate(precision[::-1])[::-1] if len(precision) else precision
    corners = np.flatnonzero(np.diff(best, append=0.0)) if len(best) else np.zeros(0, int)
    corners = _thin(corners)
    return np.concatenate([[0.0], np.repeat(recall[corners], 2)]), np.concatenate([np.repeat(best[corners], 2), [0.0]])


def _mean_envelope(result: "VOCResult", classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean of classes' envelopes at 101 recalls."""
    levels = np.linspace(0, 1, 101)
    total = np.zeros(len(levels))
    for index in classes:
        recall, precision, _ = (part.double().cpu().numpy() for part in result.curve(index))
        best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        # the first point that reaches a recall has, of those from there on, the best precision
        total += best[np.searchsorted(recall, levels - 1e-12)]
    return levels, total / len(classes)


def speed_plot(points: "Sequence[SpeedPoint]") -> str:
    """Draw mAP against images a second on a logarithmic axis, as `viz.comparison.speed_plot` does."""
    speeds = [speed for point in points for speed in (point.speed, point.slower) if speed is not None]
    low, high = math.log10(min(speeds)) - 0.15, math.log10(max(speeds)) + 0.15
    wider = max(0.0, 0.75 - (high - low)) / 2  # less than a power of ten would blow small differences up
    low, high = low - wider, high + wider
    values = [point.mAP for point in points]
    # four steps between round numbers, with some room at both ends
    steps = (0.01, 0.02, 0.05, 0.1, 0.15, 0.25)
    first = {step: math.floor((min(values) - step / 4) / step) * step for step in steps}
    step = next((step for step in steps if first[step] + 3.75 * step >= max(values)), steps[-1])
    bottom = max(0.0, min(first[step], 1 - 4 * step))  # there is no mAP above 1
    top = bottom + 4 * step

    def place(speed: float, value: float) -> tuple[float, float]:
        return _x((math.log10(speed) - low) / (high - low)), _y((value - bottom) / (top - bottom))

    body, labels = "", []
    for index, point in sorted(enumerate(points), key=lambda pair: pair[1].speed):
        x, y = place(point.speed, point.mAP)
        style = f'style="--hue:{even_hue(index, len(points))}"'
        text = f"{point.name}: mAP {point.mAP:.4f}, {point.speed:.3g} images/s"
        if point.slower is not None:
            left, _ = place(point.slower, point.mAP)
            text += f", {point.slower:.3g} with the making of its proposals"
            body += f'<line class="reach" {style} x1="{left:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{y:.1f}"/>'
            body += f'<circle class="hollow" {style} cx="{left:.1f}" cy="{y:.1f}" r="5"/>'
        body += f'<circle class="mark" {style} cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(text)}</title></circle>'
        labels.append((x, y, point.name))
    axes = "".join(_tick(place(speed, bottom)[0], speed) for speed in _log_ticks(low, high))
    text = f"mAP against images a second of {len(points)} detectors"
    body = axes + body + _labels(labels)
    return _frame(text, "images/s, one at a time (logarithmic)", "mAP", None, (bottom, top), body)


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 of every power of ten between two of them; 1 alone where these were many."""
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in digits]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]


def _tick(x: float, value: float) -> str:
    return (
        f'<line class="grid" x1="{x:.1f}" y1="{_y(0)}" x2="{x:.1f}" y2="{_y(1)}"/>'
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_number(value)}</text>'
    )


def _labels(points: Sequence[tuple[float, float, str]]) -> str:
    """Write names by their points, where none covers another: above, else below, else further off."""
    taken: list[tuple[float, float, float]] = []
    text = ""
    for x, y, name in points:
        half = 3.4 * len(name)
        x = min(max(x, LEFT + half), WIDTH - RIGHT - half)
        spots = [y - 10, y + 20, y - 24, y + 34, y - 38]
        free = [
            spot
            for spot in spots
            if TOP + 10 < spot < HEIGHT - BOTTOM
            and all(abs(spot - other) > 13 or abs(x - middle) > half + wide for middle, other, wide in taken)
        ]
        spot = (free or spots)[0]
        taken.append((x, spot, half))
        text += f'<text class="name" x="{x:.1f}" y="{spot:.1f}" text-anchor="middle">{escape(name)}</text>'
    return text


def hue(index: int) -> int:
    """Return the hue of a class's line: a golden angle apart, so that no two are near."""
    return round(index * 137.508 + 10) % 360


def even_hue(index: int, count: int) -> int:
    """Return the hue of one of `count` detectors, which are few: as far apart as they can be, beginning with red."""
    return round(10 + 360 * index / max(count, 6))


def loss_plot(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw the loss of a training log, and mAP where it was measured; None where the log has no losses."""
    training = [record for record in records if record.get("loss") is not None and math.isfinite(record["loss"])]
    if not training:
        return None
    training = [training[place] for place in _thin(np.arange(len(training)))]
    steps = np.array([record["iteration"] for record in training], float)
    losses = np.array([record["loss"] for record in training], float)
    # from below, since a loss starts far above where it ends
    high = float(np.quantile(losses, 0.99)) or 1.0
    end = max(float(record["iteration"]) for record in records) or 1.0
    body = f'<polyline class="loss" points="{_points(steps / end, np.minimum(losses / high, 1))}"/>'
    measured = [record for record in records if record.get("mAP") is not None]
    if measured:
        xs = np.array([record["iteration"] for record in measured], float) / end
        ys = np.array([record["mAP"] for record in measured], float)
        body += f'<polyline class="map" points="{_points(xs, ys)}"/>'
        body += "".join(
            f'<circle class="map" cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="3.5"><title>mAP {y:.3f}</title></circle>'
            for x, y in zip(xs, ys)
        )
    text = f"Loss over {end:.0f} iterations, {losses[0]:.3g} at first, {losses[-1]:.3g} at last"
    return _frame(text, "iteration", "loss", (0, end), (0, high), body)


def reliability_plot(calibration: "Calibration") -> str:
    """Draw precision in each bin of scores, beside the diagonal of scores that are probabilities."""
    bins = len(calibration.count)
    body = f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>'
    for place, (count, precision) in enumerate(zip(calibration.count.tolist(), calibration.precision.tolist())):
        if count:
            title = f"scores {place / bins:g} to {(place + 1) / bins:g}: {count} detections, {precision:.1%} right"
            body += _bar(place / bins, (place + 1) / bins, 0, precision, "right", title)
    text = f"Precision by score; expected calibration error {calibration.error:.4f}"
    return _frame(text, "score", "precision", (0, 1), (0, 1), body)


def histogram_plot(parts: Mapping[str, Tensor], text: str, label: str, *, log: bool = False) -> str:
    """Draw histograms over [0, 1], stacked; `parts` is by the class of their bars. log: counts on a logarithmic axis,
    where bars stand side by side."""
    columns = np.stack([part.cpu().numpy() for part in parts.values()]).astype(float)
    bins = columns.shape[1]
    top = max(1.0, float(columns.max() if log else columns.sum(0).max()))
    scale = np.log10(columns + 1) / math.log10(top + 1) if log else columns / top
    body = ""
    for place in range(bins):
        base = 0.0
        for row, name in enumerate(parts):
            title = f"{place / bins:g} to {(place + 1) / bins:g}: {columns[row, place]:.0f} {name}"
            low, high = place / bins, (place + 1) / bins
            if log:
                low, high = low + row / len(parts) / bins, low + (row + 1) / len(parts) / bins
            body += _bar(low, high, base, base + scale[row, place], name, title)
            base += 0 if log else scale[row, place]
    return _frame(text, label, "count", (0, 1), (0, top), body, log=log)


def _bar(low: float, high: float, bottom: float, top: float, name: str, title: str) -> str:
    if top <= bottom:
        return ""
    x, width = _x(low) + 0.5, _x(high) - _x(low) - 1
    return (
        f'<rect class="bar {name}" x="{x:.1f}" y="{_y(top):.1f}" width="{width:.1f}" '
        f'height="{_y(bottom) - _y(top):.1f}"><title>{escape(title)}</title></rect>'
    )


def _x(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)


def _points(xs: np.ndarray, ys: np.ndarray) -> str:
    return " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in zip(xs, ys))


def _thin(places: np.ndarray) -> np.ndarray:
    """Return at most POINTS of an array, its ends among them."""
    if len(places) <= POINTS:
        return places
    return places[np.linspace(0, len(places) - 1, POINTS).round().astype(int)]


def _frame(
    text: str,
    across: str,
    up: str,
    xs: tuple[float, float] | None,
    ys: tuple[float, float],
    body: str,
    *,
    log: bool = False,
) -> str:
    """Put axes around a plot; xs, ys: what the ends of the axes stand for; without xs the body has that axis."""
    axes = ""
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share)
        count = (ys[1] + 1) ** share - 1 if log else ys[0] + share * (ys[1] - ys[0])
        if xs is not None:
            axes += _tick(_x(share), xs[0] + share * (xs[1] - xs[0]))
        axes += (
            f'<line class="grid" x1="{_x(0)}" y1="{y:.1f}" x2="{_x(1)}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(count)}</text>'
        )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<svg class="plot" role="img" aria-label="{escape(text, quote=True)}" viewBox="0 0 {WIDTH} {HEIGHT}">{axes}'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{across}</text>'
        f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{up}</text>{body}</svg>'
    )


def _number(value: float) -> str:
    if value >= 10000:
        return f"{value / 1000:.0f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
