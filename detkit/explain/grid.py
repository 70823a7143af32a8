"""A grid's cells, class map and boxes, and which box answers for which object (YOLOv1, figure 2)."""

import numpy as np

from detkit.explain.canvas import DARK, NEGATIVE, TRUTH, Canvas, Key, Panel, Section
from detkit.explain.drawing import class_legend, draw, draw_truth, object_name
from detkit.explain.explanation import Explanation
from detkit.models.trace import GridStep, ResponsibleStep
from detkit.viz.draw import colour


@draw.register
def draw_grid(step: GridStep, explanation: Explanation) -> list[Section]:
    """The best class of each cell, and the boxes of all cells with their confidence."""
    classes = step.classes.cpu().numpy()
    labels = classes.argmax(1)
    legend = class_legend(explanation, labels, "fill")
    return [
        Section(
            "class-map",
            "Grid and class map",
            f"{step.grid} x {step.grid} cells, each with one score a class: the colour is that of the best class, the "
            "stronger the higher its score. A cell says what is there if something is: where nothing is, it is a "
            "guess.",
            [_class_map(step.grid, labels, classes.max(1), explanation)],
            legend,
        ),
        Section(
            "boxes",
            "Boxes and confidence",
            f"{step.confidence.shape[1]} boxes a cell, {step.confidence.numel()} in all, each with a confidence that "
            "it holds an object: the thicker, the surer. The colour is the class of the box's cell. Confidence times "
            "class score is the score.",
            [_boxes(step, labels, explanation)],
            legend,
        ),
    ]


def _canvas(grid: int, explanation: Explanation) -> Canvas:
    """The image with a faint grid."""
    height, width = explanation.image.shape[:2]
    canvas = Canvas(explanation.image, light=DARK)
    canvas.grid(grid, grid, (0, 0, width, height), 0.3)
    return canvas


def _cells(grid: int, explanation: Explanation) -> np.ndarray:
    """(S * S, 4) of the cells in pixels of the image."""
    height, width = explanation.image.shape[:2]
    x, y = np.linspace(0, width, grid + 1), np.linspace(0, height, grid + 1)
    return np.array([(x[c], y[r], x[c + 1], y[r + 1]) for r in range(grid) for c in range(grid)])


def _class_map(grid: int, labels: np.ndarray, scores: np.ndarray, explanation: Explanation) -> Panel:
    height, width = explanation.image.shape[:2]
    canvas = Canvas(explanation.image, light=DARK)
    for cell, label, score in zip(_cells(grid, explanation), labels.tolist(), scores.tolist()):
        canvas.fill(cell, colour(label), 0.75 * min(score, 1.0))
    canvas.grid(grid, grid, (0, 0, width, height), 0.8)
    return Panel(canvas.drawing())


def _boxes(step: GridStep, labels: np.ndarray, explanation: Explanation) -> Panel:
    canvas = _canvas(step.grid, explanation)
    boxes, confidence = explanation.in_image(step.boxes), step.confidence.cpu().numpy().clip(0, 1)
    cells, numbers = np.unravel_index(confidence.argsort(axis=None), confidence.shape)
    for cell, number in zip(cells.tolist(), numbers.tolist()):
        value = float(confidence[cell, number])
        canvas.box(boxes[cell, number], colour(int(labels[cell])), 0.5 + 2 * value, alpha=0.12 + 0.88 * value)
    return Panel(canvas.drawing())


@draw.register
def draw_responsible(step: ResponsibleStep, explanation: Explanation) -> list[Section]:
    """The cell and the box that answer for each object."""
    assert explanation.truth is not None
    labels = explanation.truth.labels
    boxes, matched_gt_index = explanation.in_image(step.boxes), step.matched_gt_index.tolist()
    canvas, cells = _canvas(step.grid, explanation), _cells(step.grid, explanation)
    overlaps = []
    matched = [cell for cell, index in enumerate(matched_gt_index) if index >= 0]
    for cell in matched:
        index = matched_gt_index[cell]
        shade = colour(int(labels[index]))
        canvas.fill(cells[cell], shade, 0.55)
        for box, responsible, iou in zip(boxes[cell], step.responsible[cell].tolist(), step.iou[cell].tolist()):
            canvas.box(box, shade if responsible else NEGATIVE, 2 if responsible else 1)
            if responsible:
                overlaps.append(f"{object_name(explanation, index)} {iou:.2f}")
    draw_truth(canvas, explanation)
    text = (
        "What training would learn from this image: the cell that an object's centre falls into answers for it, and of "
        f"its boxes the one that overlaps the object most (IoU: {', '.join(overlaps) or 'none'})."
    )
    if lost := len(labels) - len(matched):
        text += f" {lost} of the {len(labels)} objects have no cell of their own, or are not trained on."
    legend = [Key(TRUTH, "dashed", "object"), *class_legend(explanation, labels, "fill", "cell and box for ")]
    legend.append(Key(NEGATIVE, "solid", "other box of the cell"))
    title = "Responsible cells and boxes (training)"
    return [Section("responsible", title, text, [Panel(canvas.drawing())], legend)]
