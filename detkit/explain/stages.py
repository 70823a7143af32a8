"""The stages of an explanation as images; those that all detectors share are here."""

from typing import TYPE_CHECKING

import numpy as np

from detkit.explain.canvas import DARK, PROPOSAL, TRUTH, Canvas, Key, Panel, Stage, side_of, window
from detkit.explain.naming import class_legend, final_name, many
from detkit.explain.region import region_stages
from detkit.explain.ssd import ssd_stages
from detkit.explain.yolo import yolo_stages
from detkit.viz.draw import colour

if TYPE_CHECKING:
    from detkit.explain.trace import Explanation

MOST = 12  # final boxes whose suppression has a panel of its own


def draw_stages(explanation: "Explanation") -> list[Stage]:
    """Return the stages in the order in which the detector goes through them; see `Stage`."""
    from detkit.explain.trace import RegionTrace, SSDTrace, YOLOTrace

    trace = explanation.trace
    if isinstance(trace, SSDTrace):
        own = ssd_stages(explanation, trace)
    elif isinstance(trace, YOLOTrace):
        own = yolo_stages(explanation, trace)
    elif isinstance(trace, RegionTrace):
        own = region_stages(explanation, trace)
    else:
        own = []
    return [*own, _candidates(explanation), _suppression(explanation), _final(explanation)]


def _candidates(explanation: "Explanation") -> Stage:
    work, settings = explanation.work, explanation.settings
    canvas = Canvas(explanation.image, light=DARK)
    order = range(len(work.scores) - 1, -1, -1)
    canvas.boxes(
        work.boxes[::-1],
        [colour(int(work.labels[row])) for row in order],
        [0.35 + 0.65 * _share(work.scores, row) for row in order],
    )
    count = len(work.scores)
    text = (
        f"{many(count, 'box', 'boxes')} of a score above {settings.score_threshold:g}, before non-maximum suppression. "
        + (
            f"The best scores {work.scores[0]:.3f}, the last {work.scores[-1]:.3f}; the fainter, the lower."
            if count
            else "A lower --score shows more."
        )
    )
    return Stage("candidates", "Scores before NMS", text, [Panel(canvas.drawing())], class_legend(explanation))


def _share(scores: np.ndarray, row: int) -> float:
    """A score from 0 to 1 among those of the image; those of SVMs may be negative."""
    span = float(scores[0] - scores[-1])
    return float(scores[row] - scores[-1]) / span if span > 0 else 1.0


def _suppression(explanation: "Explanation") -> Stage:
    work = explanation.work
    panels = []
    for place, winner in enumerate(work.final[:MOST].tolist()):
        losers = work.removed(winner)
        shown = work.boxes[[winner, *losers]]
        part = window(shown, 0.12, min(explanation.image.shape[:2]) / 5)
        canvas = Canvas(explanation.image, side_of(min(MOST, len(work.final))), DARK, part)
        canvas.boxes(work.boxes[losers[::-1]], [PROPOSAL] * len(losers), [0.8] * len(losers))
        canvas.box(work.boxes[winner], colour(int(work.labels[winner])), 2.5)
        caption = f"{final_name(explanation, place)}: removed {len(losers)}"
        if len(losers):
            caption += f", best {work.scores[losers[0]]:.2f}"
        panels.append(Panel(canvas.drawing(), caption))
    removed = int(((work.by >= 0) & (work.by != np.arange(len(work.by)))).sum())
    unseen, cut = int((work.by < 0).sum()), int((work.by == np.arange(len(work.by))).sum()) - len(work.final)
    text = (
        f"Best first, each box that is still there stays, and removes the boxes of its class that overlap it by more "
        f"than IoU {work.iou:g}: {many(len(work.final), 'box stays', 'boxes stay')}, {removed} removed."
    )
    if unseen:
        text += f" {unseen} beyond the best {explanation.settings.top_k} of a class were not looked at."
    if cut:
        text += f" {cut} beyond the best {explanation.settings.detections_per_image} of the image were cut."
    if len(work.final) > MOST:
        text += f" The best {MOST} are shown."
    if not panels:
        panels = [Panel(Canvas(explanation.image, light=DARK).drawing())]
    legend = [*class_legend(explanation), Key(PROPOSAL, "solid", "removed by the thick box")]
    return Stage("nms", "Non-maximum suppression", text, panels, legend)


def _final(explanation: "Explanation") -> Stage:
    work = explanation.work
    canvas = Canvas(explanation.image)
    legend = class_legend(explanation)
    text = f"{many(len(work.final), 'detection', 'detections')}, in pixels of the image, cut to its border."
    if explanation.truth is not None:
        for box in explanation.truth.boxes:
            canvas.truth(box)
        text += f" Dashed: the {many(len(explanation.truth.boxes), 'annotated object', 'annotated objects')}."
        legend.append(Key(TRUTH, "dashed", "object"))
    for row in work.final[::-1].tolist():
        canvas.box(work.boxes[row], colour(int(work.labels[row])), 1.5)
    for place, row in enumerate(work.final.tolist()):
        canvas.name(work.boxes[row], final_name(explanation, place), colour(int(work.labels[row])))
    return Stage("detections", "Detections", text, [Panel(canvas.drawing())], legend)
