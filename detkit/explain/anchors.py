"""Anchors, whatever they are called, and the maps that they lie on (SSD, figure 1; Faster R-CNN, figure 3)."""

import numpy as np
import torch

from detkit.explain.canvas import DARK, HEAT, Canvas, Key, Panel, Section, panel_side
from detkit.explain.drawing import class_legend, detection_name, draw, map_extent, map_title, plural
from detkit.explain.explanation import Explanation
from detkit.models.trace import AnchorStep, FocalStep, MapStep, ObjectnessStep
from detkit.viz.draw import colour

# of anchors: each twice as large as the one before
SHADES = ((255, 200, 0), (0, 200, 190), (240, 90, 180), (150, 210, 60))


@draw.register
def draw_anchors(step: AnchorStep, explanation: Explanation) -> list[Section]:
    """The cells of each map, and the boxes of the one cell below the best detection."""
    height, width = explanation.image.shape[:2]
    below = explanation.boxes[0] if len(explanation.boxes) else np.array([0, 0, width, height], float)
    centre = (below[:2] + below[2:]) / 2
    noun = step.noun.split()[-1]
    panels, shades = [], set()
    for index, (shape, boxes) in enumerate(zip(step.maps, step.boxes)):
        canvas = Canvas(explanation.image, panel_side(len(step.maps)), DARK)
        extent = np.array(map_extent(explanation, shape))
        canvas.grid(shape.rows, shape.columns, extent)
        cells, size = np.array([shape.columns, shape.rows]), extent[2:] - extent[:2]
        column, row = ((centre - extent[:2]) / size * cells).astype(int).clip(0, cells - 1).tolist()
        of_cell = explanation.in_image(boxes.unflatten(0, (shape.rows, shape.columns, -1))[row, column])
        for box, shade in zip(of_cell, anchor_shades(of_cell)):
            canvas.box(box, shade, 1.2)
            shades.add(shade)
        canvas.dot((of_cell[0, :2] + of_cell[0, 2:]) / 2, SHADES[0])
        panels.append(Panel(canvas.drawing(), f"{map_title(index, shape)} cells, {len(of_cell)} {noun} each"))
    text = (
        f"{sum(map(len, step.boxes))} {step.noun} on {plural(len(panels), 'map', 'maps')}. Of each map the cells are "
        f"drawn, and the {noun} of one cell, below the best detection; {step.note}."
    )
    key = f"{noun} of one cell" + (", a colour for each size" if len(shades) > 1 else "")
    title = step.noun.capitalize()
    return [Section(step.noun.replace(" ", "-"), title, text, panels, [Key(SHADES[0], "solid", key)])]


def anchor_shades(boxes: np.ndarray) -> list[tuple[int, int, int]]:
    """The colour of each box (K, 4) of a cell: another one for each size, where sizes double."""
    side = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
    # Sizes that should be equal differ, since anchors are rounded to pixels; SSD's two squares are within an octave.
    octave = np.floor(np.log2(side / side.min()) + 0.25).astype(int)
    return [SHADES[size % len(SHADES)] for size in octave.tolist()]


@draw.register
def draw_maps(step: MapStep, explanation: Explanation) -> list[Section]:
    """The candidates of each map."""
    nms, levels = explanation.nms, step.level.cpu().numpy()
    candidate_level, detection_level = levels[nms.source], levels[explanation.source]
    panels = []
    for level, shape in enumerate(step.maps):
        canvas = Canvas(explanation.image, panel_side(len(step.maps)), DARK)
        rows = np.flatnonzero(candidate_level == level)[::-1]
        canvas.boxes(nms.boxes[rows], [colour(int(label)) for label in nms.labels[rows]], [0.9] * len(rows))
        detections = np.flatnonzero(detection_level == level).tolist()
        for index in detections:
            box, shade = explanation.boxes[index], colour(int(explanation.labels[index]))
            canvas.box(box, shade, 2)
            canvas.name(box, detection_name(explanation, index), shade)
        caption = f"{map_title(level, shape)}, {plural(len(rows), 'box', 'boxes')}, {len(detections)} final"
        panels.append(Panel(canvas.drawing(), caption))
    text = (
        f"The map that each of the {len(nms.scores)} boxes of a score above {explanation.settings.score_threshold:g} "
        "comes from; thick and named are those that stay in the end."
    )
    return [Section("maps", "The map each box came from", text, panels, class_legend(explanation))]


@draw.register
def draw_objectness(step: ObjectnessStep, explanation: Explanation) -> list[Section]:
    """Each cell's best anchor, as heat over the image."""
    panels = []
    for index, (shape, scores) in enumerate(zip(step.maps, step.scores)):
        canvas = Canvas(explanation.image, panel_side(len(step.maps)), DARK)
        best = scores.unflatten(0, (shape.rows, shape.columns, -1)).amax(-1).cpu().numpy()
        canvas.tint(best, map_extent(explanation, shape), HEAT)
        panels.append(Panel(canvas.drawing(), f"{map_title(index, shape)}, best {best.max():.2f}"))
    text = "How likely each cell's best anchor holds an object, of whatever class: from 0, clear, to 1, orange."
    return [Section("objectness", "Objectness", text, panels, [Key(HEAT, "fill", "object, says the best anchor")])]


@draw.register
def draw_focal(step: FocalStep, explanation: Explanation) -> list[Section]:
    """What the focal loss leaves of each cell's cross-entropy, as heat over the image (Focal loss, figure 4)."""
    panels = []
    left = torch.where(step.entropy > 0, step.focal / step.entropy, 0)
    whole = step.focal.sum()
    for index, shape in enumerate(step.maps):
        canvas = Canvas(explanation.image, panel_side(len(step.maps)), DARK)
        of_map = step.level == index
        cells = left[of_map].unflatten(0, (shape.rows, shape.columns, -1)).amax(-1)
        canvas.tint(cells.cpu().numpy(), map_extent(explanation, shape), HEAT)
        share = float(step.focal[of_map].sum() / whole)
        panels.append(Panel(canvas.drawing(), f"{map_title(index, shape)}, {share:.0%} of the focal loss"))
    shares = []
    for loss in (step.entropy, step.focal):
        negatives = loss[~step.positive].sort(descending=True).values
        hardest = negatives[: max(1, len(negatives) // 100)].sum()
        shares.append((float(loss[step.positive].sum() / loss.sum()), float(hardest / loss.sum())))
    (positive, hard), (focal_positive, focal_hard) = shares
    text = (
        f"All {len(left)} anchors are learned, and nearly all are background that the network knows already. The focal "
        f"loss multiplies an anchor's cross-entropy by (1 - p)^{step.gamma:g}; p is the probability of what is right. "
        f"Of this image's cross-entropy the {plural(int(step.positive.sum()), 'anchor', 'anchors')} of objects have "
        f"{positive:.0%}, and the hardest hundredth of the background has {hard:.0%}; of its focal loss they have "
        f"{focal_positive:.0%} and {focal_hard:.0%}. Drawn is what each cell's least known anchor keeps of its "
        "cross-entropy: from nothing, clear, to all, orange."
    )
    return [Section("focal", "Focal weights (training)", text, panels, [Key(HEAT, "fill", "still to be learned")])]
