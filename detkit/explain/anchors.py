"""Anchors, whatever they are called, and the maps that they lie on (SSD, figure 1; Faster R-CNN, figure 3)."""

import numpy as np

from detkit.explain.canvas import DARK, HEAT, Canvas, Key, Panel, Section, panel_side
from detkit.explain.drawing import class_legend, detection_name, draw, map_extent, map_title, plural
from detkit.explain.explanation import Explanation
from detkit.models.trace import AnchorStep, MapStep, ObjectnessStep
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
        cells = np.array([shape.columns, shape.rows])
        column, row = (centre / extent[2:] * cells).astype(int).clip(0, cells - 1).tolist()
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
