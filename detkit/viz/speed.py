"""The plot that papers on detectors draw: accuracy against speed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detkit.viz.figure import hex_colour, new_figure, save, tidy

XLABEL, YLABEL = "images/s, one at a time (logarithmic)", "mAP"
STEPS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.25)  # between two ticks of mAP


@dataclass(frozen=True)
class SpeedPoint:
    """One detector. speed: images a second; slower: with the making of its proposals, None where it has none."""

    name: str
    mAP: float
    speed: float
    slower: float | None = None


@dataclass(frozen=True)
class SpeedAxes:
    """What the axes of the plot run over. speeds: images a second from and to; mAP: from and to, in four steps.

    ticks: round numbers of images a second.
    """

    speeds: tuple[float, float]
    ticks: list[float]
    mAP: tuple[float, float]


def speed_axes(points: Sequence[SpeedPoint]) -> SpeedAxes:
    """Return axes that hold all points, at least one, with some room around them."""
    speeds = [speed for point in points for speed in (point.speed, point.slower) if speed is not None]
    low, high = math.log10(min(speeds)) - 0.15, math.log10(max(speeds)) + 0.15
    wider = max(0.0, 0.75 - (high - low)) / 2  # less than that power of ten would blow small differences up
    low, high = low - wider, high + wider
    values = [point.mAP for point in points]
    # four steps between round numbers, with some room at both ends
    first = {step: math.floor((min(values) - step / 4) / step) * step for step in STEPS}
    step = next((step for step in STEPS if first[step] + 3.75 * step >= max(values)), STEPS[-1])
    bottom = max(0.0, min(first[step], 1 - 4 * step))  # there is no mAP above 1
    return SpeedAxes((10**low, 10**high), _log_ticks(low, high), (bottom, bottom + 4 * step))


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 of each power of ten between two of them; 1 alone where these were many."""
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in digits]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]


def speed_plot(points: Sequence[SpeedPoint], path: str | Path, title: str) -> None:
    """Draw mAP against images a second, on a logarithmic axis.

    A detector of stored regions has two marks: filled for the detector alone, hollow with the making of its regions.
    """
    figure = new_figure(8, 5.5)
    axes = figure.add_subplot()
    for index, point in enumerate(points):
        shade = hex_colour(index)
        if point.slower is not None:
            axes.plot([point.slower, point.speed], [point.mAP] * 2, ":", color=shade, linewidth=1.2)
            axes.plot(point.slower, point.mAP, "o", color=shade, markerfacecolor="none", markersize=8)
        axes.plot(point.speed, point.mAP, "o", color=shade, markersize=8)
        axes.annotate(point.name, (point.speed, point.mAP), (0, 9), textcoords="offset points", ha="center", fontsize=9)
    if any(point.slower is not None for point in points):
        axes.plot([], [], "o", color="#666666", label="detector alone, proposals stored")
        axes.plot([], [], "o", color="#666666", markerfacecolor="none", label="with the making of its proposals")
        axes.legend(loc="best", frameon=False, fontsize=8)
    limits = speed_axes(points)
    axes.set(xscale="log", xlim=limits.speeds, ylim=limits.mAP, xlabel=XLABEL, ylabel=YLABEL)
    axes.set_xticks(limits.ticks, [f"{tick:g}" for tick in limits.ticks])
    axes.set_xticks([], minor=True)
    axes.set_title(title, fontsize=9)
    tidy(axes)
    save(figure, path)
