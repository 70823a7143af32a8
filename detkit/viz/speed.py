"""The image that papers on detectors draw: accuracy against speed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detkit.viz.draw import colour
from detkit.viz.figure import hex_code, new_figure, save, tidy


@dataclass(frozen=True)
class SpeedPoint:
    """One detector. speed: images a second; slower: with the making of its proposals, None where it has none."""

    name: str
    mAP: float
    speed: float
    slower: float | None = None


def speed_plot(points: Sequence[SpeedPoint], path: str | Path, what: str) -> None:
    """Draw mAP against images a second, on a logarithmic axis; `what` says of what.

    A detector of given regions has two marks: filled for the detector alone, hollow with the making of its regions.
    """
    from matplotlib.ticker import LogLocator

    figure = new_figure(8, 5.5)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    for index, point in enumerate(points):
        shade = hex_code(colour(index))
        if point.slower is not None:
            axes.plot([point.slower, point.speed], [point.mAP] * 2, ":", color=shade, linewidth=1.2)
            axes.plot(point.slower, point.mAP, "o", color=shade, markerfacecolor="none", markersize=8)
        axes.plot(point.speed, point.mAP, "o", color=shade, markersize=8)
        axes.annotate(point.name, (point.speed, point.mAP), (0, 9), textcoords="offset points", ha="center", fontsize=9)
    if any(point.slower is not None for point in points):
        axes.plot([], [], "o", color="#666666", label="detector alone, proposals given")
        axes.plot([], [], "o", color="#666666", markerfacecolor="none", label="with the making of its proposals")
        axes.legend(loc="best", frameon=False, fontsize=8)
    axes.margins(x=0.12, y=0.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set(xlabel="images/s, one at a time (logarithmic)", ylabel="mAP")
    axes.set_title(what, fontsize=9)
    tidy(axes)
    save(figure, path)
