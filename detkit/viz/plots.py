"""Loss curves, precision and recall."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detkit.viz.curves import classes_by_ap, measured_curve, precision_envelope, smooth, training_curves
from detkit.viz.draw import INK, PALETTE
from detkit.viz.figure import hex_code, hex_colour, new_figure, save, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from detkit.evaluation.voc import VOCResult


def loss_plot(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw a training log: the loss and its parts, mAP where it was measured, and the learning rate.

    records: see `training_curves`.
    """
    curves = training_curves(records)
    measured = len(curves.mAP) > 0
    figure = new_figure(9, 7 if measured else 5.5)
    ratios = [3, 2, 1] if measured else [3, 1]
    panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    _draw_losses(panels[0], curves.steps, curves.losses)
    if measured:
        last = float(curves.mAP[-1])
        panels[1].plot(curves.evaluated, curves.mAP, "o-", color=hex_colour(1), markersize=4)
        panels[1].annotate(
            f"{last:.3f}", (float(curves.evaluated[-1]), last), (0, 6), textcoords="offset points", ha="right"
        )
        panels[1].set(ylabel="mAP", ylim=(0, 1.05))
    panels[-1].plot(curves.steps, curves.rates, color="#666666")
    highest = np.nanmax(curves.rates, initial=0.0) or 1.0
    panels[-1].set(ylabel="learning rate", xlabel="iteration", ylim=(0, 1.1 * highest))
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    for panel in panels:
        tidy(panel)
    save(figure, path)


def _draw_losses(axes: "Axes", steps: NDArray, losses: Mapping[str, NDArray]) -> None:
    for index, (name, values) in enumerate(losses.items()):
        shade = "#222222" if name == "loss" else hex_colour(index - 1)
        axes.plot(steps, values, color=shade, alpha=0.25, linewidth=0.8)
        axes.plot(steps, smooth(values), color=shade, linewidth=2 if name == "loss" else 1.5, label=name)
    positive = [value for value in losses.get("loss", ()) if value > 0]
    if positive and max(positive) > 20 * min(positive):
        axes.set_yscale("log")
    axes.set_ylabel("loss")
    if losses:
        axes.legend(loc="upper right", edgecolor="none")


def pr_plot(result: "VOCResult", path: str | Path) -> None:
    """Draw precision against recall of all classes in one image, the best class first in its legend."""
    classes = classes_by_ap(result)
    figure = new_figure(10, 6.5)
    axes = figure.add_subplot()
    for index in classes:
        recall, precision = precision_envelope(result, index)
        style = ("-", "--", ":")[index // len(PALETTE) % 3]
        label = f"{result.classes[index]}  {float(result.ap[index]):.3f}"
        axes.plot(recall, precision, style, color=hex_colour(index), linewidth=1.5, label=label)
    axes.set_title(f"mAP {result.mAP:.4f}\n{result.protocol}, {result.images} images", fontsize=10)
    _pr_axes(axes)
    if classes:
        columns = math.ceil(len(classes) / 30)
        axes.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, ncols=columns, title="class  AP"
        )
    save(figure, path)


def pr_plots(result: "VOCResult", folder: str | Path) -> list[Path]:
    """Write `all.png` and one `<class>.png` for each class with objects into `folder`; return their paths.

    A class's image has the curve as measured, its envelope, the area or the 11 points that AP is taken from, and the
    scores at five of its points, where it has them.
    """
    folder = Path(folder)
    paths = [folder / "all.png"]
    pr_plot(result, paths[0])
    for index in classes_by_ap(result):
        paths.append(folder / (re.sub(r"[^\w.+ -]", "_", result.classes[index]) + ".png"))
        _class_plot(result, index, paths[-1])
    return paths


def _class_plot(result: "VOCResult", index: int, path: Path) -> None:
    shade = hex_colour(index)
    recall, precision, scores = measured_curve(result, index)
    figure = new_figure(6.5, 5)
    axes = figure.add_subplot()
    axes.plot(recall, precision, color=shade, alpha=0.45, linewidth=1, label="measured")
    corners, envelope = precision_envelope(result, index)
    axes.plot(corners, envelope, color=shade, linewidth=2, label="envelope")
    if result.metric == "voc07":
        levels = np.arange(11) * 0.1
        best = [max(precision[recall >= level], default=0.0) for level in levels]
        axes.plot(levels, best, "o", color=hex_code(INK), markersize=4, label="11 points")
    else:
        axes.fill_between(corners, envelope, color=shade, alpha=0.12)
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
    save(figure, path)


def _pr_axes(axes: "Axes") -> None:
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    tidy(axes)
