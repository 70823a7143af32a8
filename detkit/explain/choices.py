"""Which anchor answers for each object, by their shapes (YOLO9000, section 2; YOLOv3, sections 2.1 and 2.3)."""

import numpy as np

from detkit.explain.anchors import SHADES
from detkit.explain.canvas import DARK, PANEL, TRUTH, Canvas, Key, Panel, Section, panel_side
from detkit.explain.drawing import class_legend, draw, letter, map_extent, map_title, object_name
from detkit.explain.explanation import Explanation
from detkit.models.trace import AnchorChoiceStep
from detkit.ops.kmeans import shape_iou
from detkit.viz.draw import colour

MARGIN = 1.1  # of the chart, around the largest shape


@draw.register
def draw_choices(step: AnchorChoiceStep, explanation: Explanation) -> list[Section]:
    """All shapes around one centre, then each map with the anchors and cells of its objects."""
    assert explanation.truth is not None
    count = len(explanation.truth.labels)  # without padding
    sides, anchors, on_map = (part.cpu().numpy() for part in (step.sides[:count], step.anchors, step.on_map))
    iou = shape_iou(step.sides[:count], step.anchors).cpu().numpy()
    place, answers, first = step.place[:, :count].cpu().numpy(), [], 0
    for index, anchor in enumerate(iou.argmax(1).tolist()):
        wide, high = anchors[anchor]
        maps = " and ".join(f"map {level + 1}" for level in np.flatnonzero(place[:, index] >= 0))
        shape = f"{wide:.0f} x {high:.0f} on {maps or 'no map'}, IoU {iou[index, anchor]:.2f}"
        answers.append(f"{object_name(explanation, index)}: {shape}")
    each = on_map.sum(1).tolist()  # anchors of a cell
    panels = [Panel(_chart(sides, anchors, on_map, explanation), f"{len(anchors)} anchors and the objects, by shape")]
    for level, shape in enumerate(step.maps):
        canvas, extent = Canvas(explanation.image, panel_side(len(step.maps)), DARK), map_extent(explanation, shape)
        canvas.grid(shape.rows, shape.columns, extent)
        cell = (np.array(extent[2:]) - extent[:2]) / (shape.columns, shape.rows)
        learned = np.flatnonzero(place[level] >= 0).tolist()
        for index in learned:
            box, shade = explanation.in_image(step.boxes[place[level, index]]), colour(explanation.truth.labels[index])
            corner = np.concatenate([(box[:2] + box[2:] - cell) / 2, (box[:2] + box[2:] + cell) / 2])
            canvas.fill(corner, shade, 0.5)
            canvas.box(box, shade, 1.5)
            canvas.truth(explanation.truth.boxes[index], object_name(explanation, index))
        caption, last = ", ".join(map(letter, learned)) or "no object", first + shape.rows * shape.columns * each[level]
        left_out, first = int(step.left_out[first:last].sum()), last
        panels.append(Panel(canvas.drawing(), f"{map_title(level, shape)} learns {caption}; {left_out} left out"))
    text = (
        "Of an object training learns one box: that of the anchor which is most like it in shape, on the map that has "
        f"this anchor, in the cell of the object's centre. {'; '.join(answers)}. All other boxes learn that nothing is "
        f"there, but for the {int(step.left_out.sum())} that overlap an object by more than IoU {step.ignore_iou:g} as "
        "they are predicted now: these are left out."
    )
    maps = [Key(SHADES[level % len(SHADES)], "solid", f"anchors of map {level + 1}") for level in range(len(step.maps))]
    legend = [
        *maps,
        Key(TRUTH, "dashed", "object"),
        *class_legend(explanation, explanation.truth.labels, what="learns "),
    ]
    return [Section("choice", "Which anchor answers for each object (training)", text, panels, legend)]


def _chart(sides: np.ndarray, anchors: np.ndarray, on_map: np.ndarray, explanation: Explanation) -> np.ndarray:
    """Draw shapes (N, 2) and (K, 2), width and height, around one centre; on_map: (M, K) bool."""
    extent = np.ceil(np.concatenate([sides, anchors]).max(0) * MARGIN).astype(int)
    canvas = Canvas(np.zeros((extent[1], extent[0], 3), np.uint8), PANEL)

    def around(shape: np.ndarray) -> np.ndarray:
        return np.concatenate([(extent - shape) / 2, (extent + shape) / 2])

    for anchor, maps in sorted(zip(anchors, on_map.T), key=lambda pair: -pair[0].prod()):
        for level in np.flatnonzero(maps).tolist():
            canvas.box(around(anchor), SHADES[level % len(SHADES)], 1.5)
    for index, shape in enumerate(sides):
        canvas.truth(around(shape), object_name(explanation, index))
    return canvas.drawing()
