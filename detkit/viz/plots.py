"""Loss curves, precision and recall, recall of proposals, accuracy against speed: drawn by matplotlib."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detkit.files import save_atomic
from detkit.names import shown, unused_name
from detkit.viz.curves import (
    SPEED_LABEL,
    SpeedPoint,
    classes_by_ap,
    measured_curve,
    precision_envelope,
    smooth,
    speed_axes,
    training_curves,
)
from detkit.viz.draw import INK, PALETTE, hex_code, hex_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from detkit.evaluation.recall import ProposalRecall
    from detkit.evaluation.voc import VOCResult

PR_AXES: dict[str, Any] = {"xlabel": "recall", "ylabel": "precision", "xlim": (0, 1.01), "ylim": (0, 1.02)}
GREY = "#666666"
MARK = 6  # pixels from a detector's mark to its side
NAME_OFFSETS = 9, -17, 22, -30, 35, -43  # of a name from its mark, points


def _new_figure(width: float, height: float) -> "Figure":
    """Return a matplotlib figure without pyplot, which keeps figures alive and may want a display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _save(figure: "Figure", path: str | Path) -> None:
    """Write the image of a figure, whole or not at all."""
    _finish(figure)
    save_atomic(path, figure.savefig)


def _finish(figure: "Figure") -> None:
    """Give all axes a light grid and no frame. No name is read as TeX."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_text("\n".join(map(shown, text.get_text().split("\n"))).replace("$", r"\$"))
    for axes in figure.axes:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)


def loss_plot(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw a training log: the loss and its parts, mAP where it was measured, and the learning rate.

    records: see `training_curves`.
    """
    _save(_loss_figure(records), path)


def loss_image(records: Sequence[Mapping[str, Any]]) -> NDArray[np.uint8]:
    """Return what `loss_plot` draws, (H, W, 3) RGB uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _loss_figure(records)
    _finish(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _loss_figure(records: Sequence[Mapping[str, Any]]) -> "Figure":
    curves = training_curves(records)
    measured = len(curves.mAP) > 0
    figure = _new_figure(9, 7 if measured else 5.5)
    ratios = [3, 2, 1] if measured else [3, 1]
    top, *middle, bottom = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    for index, (name, values) in enumerate(curves.losses.items()):
        shade = "#222222" if name == "loss" else hex_colour(index - 1)
        top.plot(curves.steps, values, color=shade, alpha=0.25, linewidth=0.8)
        top.plot(curves.steps, smooth(values), color=shade, linewidth=2 if name == "loss" else 1.5, label=name)
    positive = [value for value in curves.losses.get("loss", ()) if value > 0]
    if positive and max(positive) > 20 * min(positive):
        top.set_yscale("log")
    top.set_ylabel("loss")
    if curves.losses:
        top.legend(loc="upper right", edgecolor="none")
    for axes in middle:
        last = float(curves.evaluated[-1]), float(curves.mAP[-1])
        axes.plot(curves.evaluated, curves.mAP, "o-", color=hex_colour(1), markersize=4)
        axes.annotate(f"{last[1]:.3f}", last, (0, 6), textcoords="offset points", ha="right")
        axes.set(ylabel="mAP", ylim=(0, 1.05))
    bottom.plot(curves.steps, curves.rates, color=GREY)
    highest = np.nanmax(curves.rates, initial=0.0) or 1.0
    bottom.set(ylabel="learning rate", xlabel="iteration", ylim=(0, 1.1 * highest))
    bottom.xaxis.get_major_locator().set_params(integer=True)
    return figure


def pr_plot(result: "VOCResult", path: str | Path) -> None:
    """Draw precision against recall of all classes in one image, the best class first in its legend."""
    classes = classes_by_ap(result)
    figure = _new_figure(10, 6.5)
    axes = figure.add_subplot()
    for index in classes:
        style = ("-", "--", ":")[index // len(PALETTE) % 3]
        label = f"{result.classes[index]}  {float(result.ap[index]):.3f}"
        axes.plot(*precision_envelope(result, index), style, color=hex_colour(index), linewidth=1.5, label=label)
    axes.set_title(f"mAP {result.mAP:.4f}\n{result.protocol}, {result.images} images", fontsize=10)
    axes.set(**PR_AXES)
    if classes:
        columns = math.ceil(len(classes) / 30)
        axes.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, ncols=columns, title="class  AP"
        )
    _save(figure, path)


def pr_plots(result: "VOCResult", folder: str | Path) -> list[Path]:
    """Write `all.png` and one `<class>.png` for each class with objects into `folder`; return their paths.

    A class's image has the curve as measured, its envelope, the area or the 11 points that AP is taken from, and the
    scores at five of its points, where it has them.
    """
    folder = Path(folder)
    taken: set[str] = set()
    paths = [folder / unused_name(taken, "all", ".png")]
    pr_plot(result, paths[0])
    for index in classes_by_ap(result):
        paths.append(folder / unused_name(taken, re.sub(r"[^\w.+ -]", "_", result.classes[index]), ".png"))
        _class_plot(result, index, paths[-1])
    return paths


def _class_plot(result: "VOCResult", index: int, path: Path) -> None:
    shade = hex_colour(index)
    recall, precision, scores = measured_curve(result, index)
    figure = _new_figure(6.5, 5)
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
    axes.set(**PR_AXES)
    axes.legend(loc="lower left", frameon=False, fontsize=8)
    _save(figure, path)


def recall_plot(result: "ProposalRecall", path: str | Path, title: str = "") -> None:
    """Draw recall against IoU for each number of boxes, and against the number of boxes for half the IoUs and MABO."""
    figure = _new_figure(11, 4.8)
    left, right = figure.subplots(1, 2)
    recall, boxes, mabo = (part.cpu().numpy() for part in (result.recall, result.boxes, result.mabo))
    for index, number in enumerate(result.numbers):
        label = f"all, {boxes[index]:.0f} an image" if number is None else f"best {number}"
        left.plot(result.ious, recall[index], "o-", color=hex_colour(index), markersize=3, label=label)
    left.set(xlabel="IoU", ylabel="recall", xlim=(min(result.ious), max(result.ious)), ylim=(0, 1.02))
    for index, iou in enumerate(result.ious[::2]):
        if iou < 1:  # at 1 there is nothing to see
            shade = hex_colour(index)
            right.plot(boxes, recall[:, 2 * index], "o-", color=shade, markersize=3, label=f"recall at IoU {iou:g}")
    right.plot(boxes, mabo, "s--", color=hex_code(INK), markersize=4, label="MABO")
    right.set(xlabel="boxes an image", xscale="log", ylim=(0, 1.02))
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    _save(figure, path)


def speed_plot(points: Sequence[SpeedPoint], path: str | Path, title: str) -> None:
    """Draw mAP against images a second, on a logarithmic axis.

    A detector of stored regions has two marks: filled for the detector alone, hollow with the making of its regions.
    """
    figure = _new_figure(8, 5.5)
    axes = figure.add_subplot()
    for index, point in enumerate(points):
        shade = hex_colour(index)
        if point.slower is not None:
            axes.plot([point.slower, point.speed], [point.mAP] * 2, ":", color=shade, linewidth=1.2)
            axes.plot(point.slower, point.mAP, "o", color=shade, markerfacecolor="none", markersize=8)
        axes.plot(point.speed, point.mAP, "o", color=shade, markersize=8)
    if any(point.slower is not None for point in points):
        axes.plot([], [], "o", color=GREY, label="detector alone, proposals stored")
        axes.plot([], [], "o", color=GREY, markerfacecolor="none", label="with the making of its proposals")
        axes.legend(loc="best", frameon=False, fontsize=8)
    speeds, ticks, values = speed_axes(points)
    axes.set(xscale="log", xlim=speeds, ylim=values, xlabel=SPEED_LABEL, ylabel="mAP")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_title(title, fontsize=9)
    _write_names(axes, points)
    _save(figure, path)


def _write_names(axes: Any, points: Sequence[SpeedPoint]) -> None:
    """Write names where none covers another or a mark: above their points, else below, else further off by a line."""
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # now places are known
    marks = [axes.transData.transform((point.speed, point.mAP)) for point in points]
    taken = [Bbox.from_extents(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in marks]
    for point in sorted(points, key=lambda point: point.speed):
        mark = point.speed, point.mAP
        text = axes.annotate(point.name, mark, (0, 0), textcoords="offset points", ha="center", fontsize=9)
        for offset in NAME_OFFSETS:
            text.set_position((0, offset))
            if not any(text.get_window_extent().overlaps(other) for other in taken):
                break
        taken.append(text.get_window_extent())
        if (offset := text.get_position()[1]) not in NAME_OFFSETS[:2]:
            end = 0, offset if offset > 0 else offset + text.get_fontsize()
            line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.7}
            axes.annotate("", mark, end, textcoords="offset points", arrowprops=line, zorder=1)
