"""Small plots as inline SVG, coloured by the page's style sheet."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from torch import Tensor

from detkit.evaluation import VOCResult
from detkit.evaluation.diagnosis import Calibration
from detkit.viz.curves import (
    SPEED_LABEL,
    SpeedPoint,
    classes_by_ap,
    log_ticks,
    mean_envelope,
    precision_envelope,
    round_ticks,
    speed_axes,
    thin,
    training_curves,
)
from detkit.viz.draw import hex_colour

WIDTH, HEIGHT = 520, 320
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 12, 46
LETTER, LINE = 9.5, 20  # at most, in the style sheet's larger letters of narrow screens
MARK = 6  # half the side of a point, and a little
POINTS = 160  # of a curve


def pr_plot(result: VOCResult) -> str:
    """Draw the precision envelope of every class that has an AP; a line's class is its `data-class`."""
    classes = sorted(classes_by_ap(result))
    lines = "".join(_class_curve(result, index, hex_colour(index), result.classes[index]) for index in classes)
    return _frame(f"Precision against recall of {len(classes)} classes", "recall", "precision", (0, 1), (0, 1), lines)


def pr_comparison(results: Mapping[str, VOCResult]) -> str:
    """Draw the precision envelopes of several detectors, by class; the class of a line is its `data-class`.

    `mean` is the mean over classes of the envelopes, at each recall; it alone is not hidden. The lines of a detector
    are of the colour of its number.
    """
    lines = ""
    for number, (name, result) in enumerate(results.items()):
        shade, classes = hex_colour(number), sorted(classes_by_ap(result))
        if classes:
            lines += _curve("mean", shade, f"{name}: mAP {result.mAP:.3f}", mean_envelope(result))
        lines += "".join(_class_curve(result, index, shade, name, " hidden") for index in classes)
    text = f"Precision against recall of {len(results)} detectors"
    return _frame(text, "recall", "precision", (0, 1), (0, 1), lines)


def _class_curve(result: VOCResult, index: int, shade: str, name: str, attributes: str = "") -> str:
    title = f"{name}: AP {float(result.ap[index]):.3f}"
    return _curve(index, shade, title, precision_envelope(result, index, POINTS), attributes)


def _curve(name: int | str, shade: str, title: str, curve: tuple[np.ndarray, np.ndarray], attributes: str = "") -> str:
    return (
        f'<polyline class="curve" data-class="{name}" style="--shade:{shade}"{attributes} '
        f'points="{_points(*curve)}"><title>{escape(title)}</title></polyline>'
    )


def speed_plot(points: Sequence[SpeedPoint]) -> str:
    """Draw mAP against images a second on a logarithmic axis, as `viz.speed_plot` does."""
    speeds, ticks, (bottom, top) = speed_axes(points)

    def across(speed: float) -> float:
        return _x(float(np.interp(math.log10(speed), np.log10(speeds), (0, 1))))

    body = "".join(_tick(across(speed), speed) for speed in ticks)
    names: list[tuple[float, float, str]] = []
    for index, point in sorted(enumerate(points), key=lambda pair: pair[1].speed):
        x, y = across(point.speed), _y((point.mAP - bottom) / (top - bottom))
        style = f'style="--shade:{hex_colour(index)}"'
        title = f"{point.name}: mAP {point.mAP:.4f}, {point.speed:.3g} images/s"
        if point.slower is not None:
            left = across(point.slower)
            title += f", {point.slower:.3g} with the making of its proposals"
            body += f'<line class="reach" {style} x1="{left:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{y:.1f}"/>'
            body += f'<circle class="hollow" {style} cx="{left:.1f}" cy="{y:.1f}" r="5"/>'
        body += f'<circle class="mark" {style} cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(title)}</title></circle>'
        names.append((x, y, point.name))
    text = f"mAP against images a second of {len(points)} detectors"
    return _frame(text, SPEED_LABEL, "mAP", None, (bottom, top), body + _labels(names))


def _tick(x: float, value: float) -> str:
    return (
        f'<line class="grid" x1="{x:.1f}" y1="{_y(0)}" x2="{x:.1f}" y2="{_y(1)}"/>'
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_number(value)}</text>'
    )


def _labels(points: Sequence[tuple[float, float, str]]) -> str:
    """Write names by their points, where none covers another or a point: above, below, beside, else further off, with a
    line to its point."""
    taken = [(x - MARK, y - MARK, x + MARK, y + MARK) for x, y, _ in points]
    text = ""
    for x, y, name in points:
        half = LETTER / 2 * len(name)
        inside = [spot for spot in _spots(x, y, half) if _fits(spot, half)]
        free = (spot for spot in inside if not any(_overlap(_box(spot, half), other) for other in taken))
        middle, base, steps = spot = next(free, inside[0])
        taken.append(_box(spot, half))
        if steps:
            end = base + 2 if base < y else base - LETTER
            text += f'<line class="leader" x1="{x:.1f}" y1="{y:.1f}" x2="{middle:.1f}" y2="{end:.1f}"/>'
        text += f'<text class="name" x="{middle:.1f}" y="{base:.1f}" text-anchor="middle">{escape(name)}</text>'
    return text


def _spots(x: float, y: float, half: float) -> Iterator[tuple[float, float, int]]:
    """Yield places for a name, the best first: its middle, its base line, how many lines it is off."""
    inside = min(max(x, LEFT + half), WIDTH - RIGHT - half)
    beside = [x + MARK + 4 + half, x - MARK - 4 - half]
    for steps in range(HEIGHT // LINE):
        far = steps * LINE
        yield from ((inside, y - 10 - far, steps), (inside, y + LINE + 4 + far, steps))
        yield from ((middle, y + 5 + up * far, steps) for up in (-1, 1) for middle in beside)


def _box(spot: tuple[float, float, int], half: float) -> tuple[float, float, float, float]:
    middle, base, _ = spot
    return middle - half, base - LINE + 5, middle + half, base + 4


def _fits(spot: tuple[float, float, int], half: float) -> bool:
    left, top, right, bottom = _box(spot, half)
    return left + 0.01 >= LEFT and top >= TOP and right <= WIDTH - RIGHT + 0.01 and bottom <= HEIGHT - BOTTOM


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def loss_plot(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw the loss of a training log, and mAP where it was measured; None where the log has no losses."""
    curves = training_curves(records)
    losses = curves.losses.get("loss", np.zeros(0))
    known = np.flatnonzero(np.isfinite(losses))
    if not len(known):
        return None
    shown = thin(known, POINTS)
    steps, losses = curves.steps[shown], losses[shown]
    # up to here only, since a loss starts far above where it ends
    high = float(np.quantile(losses, 0.99)) or 1.0
    end = max(float(record["iteration"]) for record in records) or 1.0
    body = f'<polyline class="loss" points="{_points(steps / end, np.minimum(losses / high, 1))}"/>'
    if len(curves.mAP):
        xs = curves.evaluated / end
        body += f'<polyline class="map" points="{_points(xs, curves.mAP)}"/>'
        body += "".join(
            f'<circle class="map" cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="3.5"><title>mAP {y:.3f}</title></circle>'
            for x, y in zip(xs, curves.mAP)
        )
    text = f"Loss over {end:.0f} iterations, {losses[0]:.3g} at first, {losses[-1]:.3g} at last"
    return _frame(text, "iteration", "loss", (0, end), (0, high), body)


def training_plot(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    end: float,
    what: str,
    *,
    highest: float | None = None,
    marks: bool = False,
) -> str:
    """Draw values over iterations up to `end`, each curve in the colour of its number.

    curves: iterations (N,) and values (N,) of each. what: they are, for who can't see it. highest: of the axis, by
    default a little above what most values reach, since a loss starts far above where it ends. marks: whether each
    value has a dot.
    """
    known = {name: (xs[np.isfinite(ys)], ys[np.isfinite(ys)]) for name, (xs, ys) in curves.items()}
    values = np.concatenate([ys for _, ys in known.values()])
    high = highest or 1.05 * float(np.quantile(values, 0.99, method="higher") if len(values) else 0.0) or 1.0
    body = ""
    for number, (name, (xs, ys)) in enumerate(known.items()):
        if not len(ys):
            continue
        shade, title = hex_colour(number), escape(f"{name}: {ys[-1]:.4g} at last")
        shares = thin(xs, POINTS) / end, np.clip(thin(ys, POINTS) / high, 0, 1)
        points = f'points="{_points(*shares)}"><title>{title}</title>'
        body += f'<polyline class="curve" style="--shade:{shade}" {points}</polyline>'
        if marks:
            body += "".join(
                f'<circle style="--shade:{shade};fill:var(--tone)" cx="{_x(x / end):.1f}" '
                f'cy="{_y(y / high):.1f}" r="3.5"><title>{y:.4f} at step {x:.0f}</title></circle>'
                for x, y in zip(xs, ys)
            )
    return _frame(f"{what} over {end:.0f} iterations", "iteration", "", (0, end), (0, high), body)


def reliability_plot(calibration: Calibration) -> str:
    """Draw precision in each bin of scores, beside the diagonal of scores that are probabilities."""
    bins = len(calibration.count)
    body = f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>'
    for index, (count, precision) in enumerate(zip(calibration.count.tolist(), calibration.precision.tolist())):
        low, high = index / bins, (index + 1) / bins
        title = f"scores {low:g} to {high:g}: {count} detections, {precision:.1%} right"
        body += _bar(low, high, 0, precision, "right", title)
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
    for index in range(bins):
        bottom = 0.0
        for row, name in enumerate(parts):
            low, high = index / bins, (index + 1) / bins
            title = f"{low:g} to {high:g}: {columns[row, index]:.0f} {name}"
            if log:
                low, high = low + row / len(parts) / bins, low + (row + 1) / len(parts) / bins
            body += _bar(low, high, bottom, bottom + scale[row, index], name, title)
            bottom += 0 if log else scale[row, index]
    return _frame(text, label, "count", (0, 1), (0, top), body, counts=True, log=log)


def _bar(low: float, high: float, bottom: float, top: float, name: str, title: str) -> str:
    if not top > bottom:  # nothing there, or NaN
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


def _frame(
    text: str,
    across: str,
    up: str,
    xs: tuple[float, float] | None,
    ys: tuple[float, float],
    body: str,
    *,
    counts: bool = False,
    log: bool = False,
) -> str:
    """Put axes around a plot; xs, ys: what the ends of the axes stand for; without xs the body has that axis. counts:
    whether `ys` are whole numbers; log: on a logarithmic axis, from 0, of 1 + the number."""
    low, high = ys
    if log:
        scale = math.log10(high + 1)
        marks = {math.log10(tick + 1) / scale: tick for tick in (0.0, *log_ticks(0, math.log10(high)))}
    else:
        marks = {(tick - low) / (high - low): tick for tick in round_ticks(low, high, counts)}
    axes = ""
    if xs is not None:
        axes = "".join(_tick(_x((tick - xs[0]) / (xs[1] - xs[0])), tick) for tick in round_ticks(*xs))
    axes += "".join(
        f'<line class="grid" x1="{_x(0)}" y1="{_y(share):.1f}" x2="{_x(1)}" y2="{_y(share):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{_y(share) + 4:.1f}" text-anchor="end">{_number(tick)}</text>'
        for share, tick in marks.items()
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<svg class="plot" role="img" aria-label="{escape(text, quote=True)}" viewBox="0 0 {WIDTH} {HEIGHT}">{axes}'
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{across}</text>'
        f'<text transform="translate(15 {middle}) rotate(-90)" text-anchor="middle">{up}</text>{body}</svg>'
    )


def _number(value: float) -> str:
    """A tick, which is round: 0.25, 500, 20k."""
    return f"{value / 1000:g}k" if value >= 10000 else f"{value:.6g}"
