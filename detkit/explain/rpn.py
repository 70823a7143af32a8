"""The region proposal network's stages (Ren et al., figure 3)."""

from typing import TYPE_CHECKING

import numpy as np

from detkit.explain.canvas import DARK, HEAT, NEGATIVE, PANEL, PROPOSAL, TRUTH, Canvas, Key, Panel, Stage, side_of
from detkit.explain.naming import assignment_panels, many, truth_legend

if TYPE_CHECKING:
    from detkit.explain.trace import Explanation, RPNTrace

TOP = 4  # proposals whose suppression has a panel of its own
# of anchors: each twice as large as the one before
SHADES = ((255, 200, 0), (0, 200, 190), (240, 90, 180), (150, 210, 60))


def rpn_stages(explanation: "Explanation", trace: "RPNTrace") -> list[Stage]:
    """Return anchors, with truth those that are learnt from, objectness, and the suppression to proposals."""
    learnt = [] if trace.learnt is None else [_learnt(explanation, trace)]
    return [_anchors(explanation, trace), *learnt, _objectness(explanation, trace), _suppression(explanation, trace)]


def _title(trace: "RPNTrace", number: int) -> str:
    rows, columns = trace.shapes[number]
    return f"map {number + 1}: {columns} x {rows}"


def _extent(trace: "RPNTrace", number: int) -> tuple[float, float, float, float]:
    """What a map covers, in pixels of the image."""
    (rows, columns), (width, height) = trace.shapes[number], trace.cells[number]
    return (0.0, 0.0, width * columns, height * rows)


def _anchors(explanation: "Explanation", trace: "RPNTrace") -> Stage:
    height, width = explanation.image.shape[:2]
    box = np.array([0, 0, width, height], float)
    if len(explanation.work.final):
        box = explanation.work.boxes[explanation.work.final[0]]
    middle = (box[:2] + box[2:]) / 2
    panels = []
    for number, (rows, columns) in enumerate(trace.shapes):
        canvas = Canvas(explanation.image, side_of(len(trace.shapes)), DARK)
        canvas.grid(rows, columns, _extent(trace, number))
        column, row = (middle / trace.cells[number]).astype(int).clip(0, [columns - 1, rows - 1]).tolist()
        own = trace.anchors[number].reshape(rows * columns, -1, 4)[row * columns + column]
        side = np.sqrt((own[:, 2:] - own[:, :2]).prod(1))
        octave = np.log2(side / side.min()).round().astype(int)
        for anchor, size in zip(own, octave.tolist()):
            canvas.box(anchor, SHADES[size % len(SHADES)], 1.2)
        canvas.dot((own[0, :2] + own[0, 2:]) / 2, SHADES[0])
        panels.append(Panel(canvas.drawing(), f"{_title(trace, number)} cells, {len(own)} anchors each"))
    count = sum(len(part) for part in trace.anchors)
    text = (
        f"{count} anchors on {many(len(panels), 'map', 'maps')}. Of each map the cells are drawn, and the anchors of "
        "one cell, below the best detection; they may be larger than the image."
    )
    return Stage(
        "anchors", "Anchors", text, panels, [Key(SHADES[0], "solid", "anchors of one cell, a colour for each size")]
    )


def _learnt(explanation: "Explanation", trace: "RPNTrace") -> Stage:
    learnt = trace.learnt
    assert learnt is not None
    positive = int((learnt.owner >= 0).sum())
    text = (
        f"What the proposal network would learn from this image: {len(learnt.owner)} anchors are drawn at random, "
        f"{positive} that fit an object, the rest background. Anchors in between are left out."
    )
    panels = assignment_panels(explanation, learnt, ("of objects", "of background"))
    legend = [Key(TRUTH, "dashed", "object"), *truth_legend(explanation, "anchor of")]
    legend.append(Key(NEGATIVE, "solid", "background"))
    return Stage("anchor-matching", "Anchors drawn (training)", text, panels, legend)


def _objectness(explanation: "Explanation", trace: "RPNTrace") -> Stage:
    panels = []
    for number, (rows, columns) in enumerate(trace.shapes):
        canvas = Canvas(explanation.image, side_of(len(trace.shapes)), DARK)
        best = trace.objectness[number].reshape(rows, columns, -1).max(-1)
        canvas.tint(best, _extent(trace, number), HEAT)
        panels.append(Panel(canvas.drawing(), f"{_title(trace, number)}, best {best.max():.2f}"))
    text = "How likely each cell's best anchor holds an object, of whatever class: from 0, clear, to 1, orange."
    return Stage("objectness", "Objectness", text, panels, [Key(HEAT, "fill", "object, says the best anchor")])


def _suppression(explanation: "Explanation", trace: "RPNTrace") -> Stage:
    work = trace.work
    panels = []
    removed = np.flatnonzero((work.by >= 0) & (work.by != np.arange(len(work.by))))
    for rows, what in ((removed, "removed"), (work.final, "proposals")):
        canvas = Canvas(explanation.image, PANEL, DARK)
        alpha = [0.15 + 0.85 * float(work.scores[row]) for row in rows[::-1]]
        canvas.boxes(work.boxes[rows[::-1]], [NEGATIVE if what == "removed" else PROPOSAL] * len(rows), alpha)
        panels.append(Panel(canvas.drawing(), f"{len(rows)} {what}"))
    for winner in work.final[:TOP].tolist():
        losers = work.removed(winner)
        canvas = Canvas(explanation.image, PANEL, DARK)
        canvas.boxes(work.boxes[losers], [NEGATIVE] * len(losers), [1.0] * len(losers))
        canvas.box(work.boxes[winner], PROPOSAL, 2.5)
        panels.append(Panel(canvas.drawing(), f"proposal of {work.scores[winner]:.2f} removed {len(losers)}"))
    text = (
        f"The anchors moved by their deltas, the best {len(work.scores)} that are large enough: of those on one map "
        f"that overlap by more than IoU {work.iou:g} the best stays, {len(work.final)} in all. The last images show "
        f"what the best {len(panels) - 2} proposals removed."
    )
    legend = [Key(PROPOSAL, "solid", "proposal"), Key(NEGATIVE, "solid", "removed")]
    return Stage("proposals", "Proposals", text, panels, legend)
