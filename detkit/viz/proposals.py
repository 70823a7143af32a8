"""Recall of proposals."""

from pathlib import Path
from typing import TYPE_CHECKING

from detkit.viz.draw import INK
from detkit.viz.figure import hex_code, hex_colour, new_figure, save, tidy

if TYPE_CHECKING:
    from detkit.evaluation.recall import ProposalRecall


def recall_plot(result: "ProposalRecall", path: str | Path, title: str = "") -> None:
    """Draw recall against IoU for each number of boxes, and against the number of boxes for half the IoUs and MABO."""
    figure = new_figure(11, 4.8)
    left, right = figure.subplots(1, 2)
    recall, boxes, mabo = (part.cpu().numpy() for part in (result.recall, result.boxes, result.mabo))
    for index, number in enumerate(result.numbers):
        label = f"all, {boxes[index]:.0f} an image" if number is None else f"best {number}"
        left.plot(result.ious, recall[index], "o-", color=hex_colour(index), markersize=3, label=label)
    left.set(xlabel="IoU", ylabel="recall", xlim=(min(result.ious), max(result.ious)), ylim=(0, 1.02))
    for index in range(0, len(result.ious), 2):
        if result.ious[index] == 1:  # nothing to see
            continue
        shade = hex_colour(index // 2)
        label = f"recall at IoU {result.ious[index]:g}"
        right.plot(boxes, recall[:, index], "o-", color=shade, markersize=3, label=label)
    right.plot(boxes, mabo, "s--", color=hex_code(INK), markersize=4, label="MABO")
    right.set(xlabel="boxes an image", xscale="log", ylim=(0, 1.02))
    for axes in (left, right):
        tidy(axes)
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    save(figure, path)
