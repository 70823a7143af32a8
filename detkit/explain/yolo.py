"""YOLOv1's own stages: its grid, class map, boxes, and which box answers for which object (Redmon et al., figure 2)."""

from typing import TYPE_CHECKING

import numpy as np

from detkit.explain.canvas import DARK, NEGATIVE, TRUTH, Canvas, Key, Panel, Stage
from detkit.explain.naming import draw_truth, object_name, truth_legend
from detkit.viz.draw import PAPER, colour

if TYPE_CHECKING:
    from detkit.explain.trace import Explanation, YOLOTrace


def yolo_stages(explanation: "Explanation", trace: "YOLOTrace") -> list[Stage]:
    """Return the class map, the boxes of all cells, and with truth the responsible cells and boxes."""
    learnt = [] if trace.owner is None else [_responsible(explanation, trace)]
    return [_class_map(explanation, trace), _boxes(explanation, trace), *learnt]


def _cells(explanation: "Explanation", grid: int) -> np.ndarray:
    """(S * S, 4) of the cells in pixels of the image."""
    height, width = explanation.image.shape[:2]
    x, y = np.linspace(0, width, grid + 1), np.linspace(0, height, grid + 1)
    return np.array([(x[c], y[r], x[c + 1], y[r + 1]) for r in range(grid) for c in range(grid)])


def _classes(explanation: "Explanation", labels: np.ndarray) -> list[Key]:
    return [Key(colour(label), "fill", explanation.classes[label]) for label in np.unique(labels).tolist()[:20]]


def _class_map(explanation: "Explanation", trace: "YOLOTrace") -> Stage:
    height, width = explanation.image.shape[:2]
    canvas = Canvas(explanation.image, light=DARK)
    best, score = trace.classes.argmax(1), trace.classes.max(1)
    for cell, label, value in zip(_cells(explanation, trace.grid), best.tolist(), score.tolist()):
        canvas.fill(cell, colour(label), 0.75 * min(value, 1.0))
    canvas.grid(trace.grid, trace.grid, (0, 0, width, height), PAPER, 0.8)
    text = (
        f"{trace.grid} x {trace.grid} cells, each with one score a class: the colour is that of the best class, the "
        "stronger the higher its score. A cell says what is there if something is: where nothing is, it is a guess."
    )
    return Stage("class-map", "Grid and class map", text, [Panel(canvas.drawing())], _classes(explanation, best))


def _boxes(explanation: "Explanation", trace: "YOLOTrace") -> Stage:
    height, width = explanation.image.shape[:2]
    canvas = Canvas(explanation.image, light=DARK)
    canvas.grid(trace.grid, trace.grid, (0, 0, width, height), PAPER, 0.3)
    best = trace.classes.argmax(1)
    confidence = trace.confidence.clip(0, 1)
    cells, ordinals = np.unravel_index(confidence.argsort(axis=None), confidence.shape)
    for cell, ordinal in zip(cells.tolist(), ordinals.tolist()):
        value = float(confidence[cell, ordinal])
        canvas.box(trace.boxes[cell, ordinal], colour(int(best[cell])), 0.5 + 2 * value, alpha=0.12 + 0.88 * value)
    many = trace.confidence.size
    text = (
        f"{trace.confidence.shape[1]} boxes a cell, {many} in all, each with a confidence that it holds an object: the "
        "thicker, the surer. The colour is the class of the box's cell. Confidence times class score is the score."
    )
    return Stage("boxes", "Boxes and confidence", text, [Panel(canvas.drawing())], _classes(explanation, best))


def _responsible(explanation: "Explanation", trace: "YOLOTrace") -> Stage:
    truth, owner, own, iou = explanation.truth, trace.owner, trace.responsible, trace.iou
    assert truth is not None
    assert owner is not None
    assert own is not None
    assert iou is not None
    height, width = explanation.image.shape[:2]
    canvas = Canvas(explanation.image, light=DARK)
    canvas.grid(trace.grid, trace.grid, (0, 0, width, height), PAPER, 0.3)
    parts, places = [], _cells(explanation, trace.grid)
    for cell in np.flatnonzero(owner >= 0).tolist():
        number = int(owner[cell])
        shade = colour(int(truth.labels[number]))
        canvas.fill(places[cell], shade, 0.55)
        for ordinal in range(own.shape[1]):
            if own[cell, ordinal]:
                canvas.box(trace.boxes[cell, ordinal], shade, 2)
                parts.append(
                    f"{object_name(number)} {explanation.classes[truth.labels[number]]} {iou[cell, ordinal]:.2f}"
                )
            else:
                canvas.box(trace.boxes[cell, ordinal], NEGATIVE, 1)
    draw_truth(canvas, explanation)
    lost = len(truth.labels) - int((owner >= 0).sum())
    text = (
        "What training would learn from this image: the cell that an object's centre falls into answers for it, and of "
        f"its boxes the one that overlaps the object most (IoU: {', '.join(parts) or 'none'})."
    )
    if lost:
        text += f" {lost} of the {len(truth.labels)} objects have no cell of their own, or are not trained on."
    legend = [Key(TRUTH, "dashed", "object"), *truth_legend(explanation, "cell and box for", "fill")]
    legend.append(Key(NEGATIVE, "solid", "other box of the cell"))
    return Stage("responsible", "Responsible cells and boxes (training)", text, [Panel(canvas.drawing())], legend)
