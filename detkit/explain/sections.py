"""The sections of an explanation: the detector's own steps, then those that all detectors share."""

import numpy as np
import torch

# Each of these registers the drawings of some steps
from detkit.explain import anchors, choices, grid, masks, positions, proposals, regions, samples  # noqa: F401
from detkit.explain.canvas import DARK, PROPOSAL, TRUTH, Canvas, Key, Panel, Section, panel_side, square_around
from detkit.explain.drawing import class_legend, detection_name, draw, plural
from detkit.explain.explanation import Explanation
from detkit.viz.draw import colour

WINNERS = 12  # detections whose suppression has a panel of its own


@torch.inference_mode()
def draw_sections(explanation: Explanation) -> list[Section]:
    """Return the sections in the order in which the detector goes through its steps; see `Section`."""
    before, after = (
        [section for step in explanation.steps if step.refines is refines for section in draw(step, explanation)]
        for refines in (False, True)
    )
    return [*before, _candidates(explanation), _suppression(explanation), _detections(explanation), *after]


def _candidates(explanation: Explanation) -> Section:
    nms = explanation.nms
    canvas = Canvas(explanation.image, light=DARK)
    shades = [colour(label) for label in nms.labels[::-1].tolist()]
    alphas = 0.35 + 0.65 * _shares(nms.scores)[::-1]
    canvas.boxes(nms.boxes[::-1], shades, alphas.tolist())
    count = len(nms.scores)
    text = (
        f"{plural(count, 'box', 'boxes')} of a score above {explanation.settings.score_threshold:g}, before "
        "non-maximum suppression."
    )
    if count:
        text += f" The best scores {nms.scores[0]:.3f}, the last {nms.scores[-1]:.3f}; the fainter, the lower."
    return Section("candidates", "Scores before NMS", text, [Panel(canvas.drawing())], class_legend(explanation))


def _shares(scores: np.ndarray) -> np.ndarray:
    """Scores, best first, from 0 to 1 among those of the image; those of SVMs may be negative."""
    if not len(scores) or scores[0] == scores[-1]:
        return np.ones(len(scores))
    scores = scores.astype(float)
    return (scores - scores[-1]) / (scores[0] - scores[-1])


def _suppression(explanation: Explanation) -> Section:
    nms, settings = explanation.nms, explanation.settings
    shown = nms.kept[:WINNERS].tolist()
    panels = []
    for index, winner in enumerate(shown):
        losers = nms.removed_by(winner)
        window = square_around(nms.boxes[[winner, *losers]], 0.12, min(explanation.image.shape[:2]) / 5)
        canvas = Canvas(explanation.image, panel_side(len(shown)), DARK, window)
        canvas.boxes(nms.boxes[losers[::-1]], [PROPOSAL] * len(losers), [0.8] * len(losers))
        canvas.box(nms.boxes[winner], colour(int(nms.labels[winner])), 2.5)
        caption = f"{detection_name(explanation, index)}: removed {len(losers)}"
        if len(losers):
            caption += f", best {nms.scores[losers[0]]:.2f}"
        panels.append(Panel(canvas.drawing(), caption))
    text = (
        f"Best first, each box that is still there stays, and removes the boxes of its class that overlap it by more "
        f"than IoU {nms.iou:g}: {plural(len(nms.kept), 'box stays', 'boxes stay')}, {len(nms.removed)} removed."
    )
    if unseen := int((nms.by < 0).sum()):
        text += f" {unseen} beyond the best {settings.top_k} of a class were not looked at."
    if cut := int(nms.stays.sum()) - len(nms.kept):
        text += f" {cut} beyond the best {settings.detections_per_image} of the image were cut."
    if len(nms.kept) > WINNERS:
        text += f" The best {WINNERS} are shown."
    if not panels:
        panels = [Panel(Canvas(explanation.image, light=DARK).drawing())]
    legend = [*class_legend(explanation), Key(PROPOSAL, "solid", "removed by the thick box")]
    return Section("nms", "Non-maximum suppression", text, panels, legend)


def _detections(explanation: Explanation) -> Section:
    canvas = Canvas(explanation.image)
    legend = class_legend(explanation)
    shades = [colour(label) for label in explanation.labels.tolist()]
    text = f"{plural(len(shades), 'detection', 'detections')}, in pixels of the image, cut to its border."
    if explanation.truth is not None:
        for box in explanation.truth.boxes:
            canvas.truth(box)
        text += f" Dashed: the {plural(len(explanation.truth.boxes), 'annotated object', 'annotated objects')}."
        legend.append(Key(TRUTH, "dashed", "object"))
    for box, shade in zip(explanation.boxes[::-1], shades[::-1]):
        canvas.box(box, shade, 1.5)
    for index, (box, shade) in enumerate(zip(explanation.boxes, shades)):
        canvas.name(box, detection_name(explanation, index), shade)
    return Section("detections", "Detections", text, [Panel(canvas.drawing())], legend)
