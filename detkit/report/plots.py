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

WIDTH, HEIGHT = 520, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 42
POINTS = 160  # of a curve at most


def pr_plot(result: "VOCResult") -> str:
    """Draw the precision envelope of every class; a line's class is its `data-class`."""
    lines = []
    for index, ap in enumerate(result.ap.tolist()):
        if ap != ap:
            continue
        recall, precision, _ = (part.double().cpu().numpy() for part in result.curve(index))
        best = np.maximum.accumulate(precision[::-1])[::-1] if len(precision) else precision
        corners = np.flatnonzero(np.diff(best, append=0.0)) if len(best) else np.zeros(0, int)
        corners = _thin(corners)
        xs = np.concatenate([[0.0], np.repeat(recall[corners], 2)])
        ys = np.concatenate([np.repeat(best[corners], 2), [0.0]])
        name = escape(result.classes[index], quote=True)
        lines.append(
            f'<polyline class="curve" data-class="{index}" style="--hue:{hue(index)}" points="{_points(xs, ys)}">'
            f"<title>{name}: AP {ap:.3f}</title></polyline>"
        )
    text = f"Precision against recall of {len(lines)} classes"
    return _frame(text, "recall", "precision", (0, 1), (0, 1), "".join(lines))


def hue(index: int) -> int:
    """Return the hue of a class's line: a golden angle apart, so that no two are near."""
    return round(index * 137.508 + 10) % 360


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
    xs: tuple[float, float],
    ys: tuple[float, float],
    body: str,
    *,
    log: bool = False,
) -> str:
    """Put axes around a plot; xs, ys: what the ends of the axes stand for."""
    axes = ""
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = _x(share), _y(share)
        count = (ys[1] + 1) ** share - 1 if log else ys[0] + share * (ys[1] - ys[0])
        axes += (
            f'<line class="grid" x1="{x:.1f}" y1="{_y(0)}" x2="{x:.1f}" y2="{_y(1)}"/>'
            f'<line class="grid" x1="{_x(0)}" y1="{y:.1f}" x2="{_x(1)}" y2="{y:.1f}"/>'
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">'
            f"{_number(xs[0] + share * (xs[1] - xs[0]))}</text>"
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
