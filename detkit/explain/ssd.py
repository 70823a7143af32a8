"""SSD's own stages: default boxes, their matches, and the map that each box comes from (Liu et al., figure 1)."""

from typing import TYPE_CHECKING

import numpy as np

from detkit.explain.canvas import DARK, NEGATIVE, TRUTH, Canvas, Key, Panel, Stage, side_of
from detkit.explain.naming import assignment_panels, class_legend, final_name, many, object_name, truth_legend
from detkit.viz.draw import colour

if TYPE_CHECKING:
    from detkit.explain.trace import Explanation, SSDTrace


def ssd_stages(explanation: "Explanation", trace: "SSDTrace") -> list[Stage]:
    """Return the default boxes of each map, with truth what training matches, and the maps of the candidates."""
    learnt = [] if trace.learnt is None else [_matches(explanation, trace)]
    return [_default_boxes(explanation, trace), *learnt, _maps(explanation, trace)]


def _title(trace: "SSDTrace", level: int) -> str:
    return f"map {level + 1}: {trace.sides[level]} x {trace.sides[level]}"


def _default_boxes(explanation: "Explanation", trace: "SSDTrace") -> Stage:
    height, width = explanation.image.shape[:2]
    centre = (width / 2, height / 2)
    if len(explanation.work.final):
        x1, y1, x2, y2 = explanation.work.boxes[explanation.work.final[0]].tolist()
        centre = ((x1 + x2) / 2, (y1 + y2) / 2)
    panels = []
    for level, side in enumerate(trace.sides):
        canvas = Canvas(explanation.image, side_of(len(trace.sides)), DARK)
        anchors = trace.anchors[trace.level == level].reshape(side * side, -1, 4)
        canvas.grid(side, side, (0, 0, width, height))
        column, row = (min(int(part / whole * side), side - 1) for part, whole in zip(centre, (width, height)))
        own = anchors[row * side + column]
        for box in own:
            canvas.box(box, (255, 200, 0), 1.2)
        canvas.dot((own[0, :2] + own[0, 2:]) / 2, (255, 200, 0))
        panels.append(Panel(canvas.drawing(), f"{_title(trace, level)} cells, {len(own)} boxes each"))
    text = (
        f"{len(trace.anchors)} default boxes on {many(len(trace.sides), 'map', 'maps')}. Of each map the cells are "
        "drawn, and the boxes of one cell, below the best detection: small boxes on fine maps, large ones on coarse."
    )
    return Stage("default-boxes", "Default boxes", text, panels, [Key((255, 200, 0), "solid", "boxes of one cell")])


def _matches(explanation: "Explanation", trace: "SSDTrace") -> Stage:
    truth, learnt = explanation.truth, trace.learnt
    assert truth is not None
    assert learnt is not None
    positive = learnt.owner >= 0
    parts = []
    for number, label in enumerate(truth.labels.tolist()):
        levels = np.bincount(trace.learnt_level[learnt.owner == number], minlength=len(trace.sides))
        own = ", ".join(f"{count} on map {level + 1}" for level, count in enumerate(levels.tolist()) if count)
        parts.append(f"{object_name(number)} {explanation.classes[label]}: {own or 'none'}")
    text = (
        f"What training would learn from this image: each object gets the default box it overlaps most, and all that "
        f"overlap it enough ({'; '.join(parts)}). Of the others the {int((~positive).sum())} hardest are negatives: "
        "background that the network, as it is now, is least sure of."
    )
    panels = assignment_panels(explanation, learnt, ("matched", "hard negatives"))
    legend = [Key(TRUTH, "dashed", "object"), *truth_legend(explanation, "matched to")]
    legend.append(Key(NEGATIVE, "solid", "hard negative"))
    return Stage("matching", "Matches to the objects (training)", text, panels, legend)


def _maps(explanation: "Explanation", trace: "SSDTrace") -> Stage:
    work = explanation.work
    level = trace.level[work.source]
    panels = []
    for number in range(len(trace.sides)):
        canvas = Canvas(explanation.image, side_of(len(trace.sides)), DARK)
        rows = np.flatnonzero(level == number)[::-1]
        canvas.boxes(work.boxes[rows], [colour(int(label)) for label in work.labels[rows]], [0.9] * len(rows))
        final = [place for place, row in enumerate(work.final.tolist()) if level[row] == number]
        for place in final:
            row = work.final[place]
            canvas.box(work.boxes[row], colour(int(work.labels[row])), 2)
            canvas.name(work.boxes[row], final_name(explanation, place), colour(int(work.labels[row])))
        caption = f"{_title(trace, number)}, {many(len(rows), 'box', 'boxes')}, {len(final)} final"
        panels.append(Panel(canvas.drawing(), caption))
    text = (
        f"The map that each of the {len(work.scores)} boxes of a score above {explanation.settings.score_threshold:g} "
        "comes from; thick and named are those that stay in the end."
    )
    return Stage("maps", "The map each box came from", text, panels, class_legend(explanation))
