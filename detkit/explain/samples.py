"""The boxes that training would learn from."""

import numpy as np

from detkit.explain.canvas import DARK, NEGATIVE, PANEL, TRUTH, Canvas, Key, Panel, Section
from detkit.explain.drawing import class_legend, draw, draw_truth, object_name
from detkit.explain.explanation import Explanation
from detkit.models.trace import SampleStep
from detkit.viz.draw import colour


@draw.register
def draw_samples(step: SampleStep, explanation: Explanation) -> list[Section]:
    """Boxes of objects in one panel, background in another."""
    assert explanation.truth is not None
    boxes, matched_gt_index = explanation.in_image(step.boxes), step.matched_gt_index.cpu().numpy()
    positive = matched_gt_index >= 0
    panels = []
    for chosen, caption in zip((positive, ~positive), step.captions):
        canvas = Canvas(explanation.image, PANEL, DARK)
        shades = [
            NEGATIVE if index < 0 else colour(int(explanation.truth.labels[index]))
            for index in matched_gt_index[chosen]
        ]
        canvas.boxes(boxes[chosen], shades, [0.9] * len(shades))
        draw_truth(canvas, explanation)
        panels.append(Panel(canvas.drawing(), f"{len(shades)} {caption}"))
    text = step.text.format(
        samples=len(positive),
        positive=positive.sum(),
        negative=(~positive).sum(),
        levels="" if step.level is None else levels_of_objects(step.level.cpu().numpy(), matched_gt_index, explanation),
    )
    of_object, background = step.legend
    of_classes = class_legend(explanation, explanation.truth.labels, what=f"{of_object} ")
    legend = [Key(TRUTH, "dashed", "object"), *of_classes, Key(NEGATIVE, "solid", background)]
    return [Section(step.name, step.title, text, panels, legend)]


def levels_of_objects(level: np.ndarray, matched_gt_index: np.ndarray, explanation: Explanation) -> str:
    """How many boxes of each map an object has; level, matched_gt_index: (K,)."""
    assert explanation.truth is not None
    parts = []
    for index in range(len(explanation.truth.labels)):
        counts = enumerate(np.bincount(level[matched_gt_index == index]).tolist(), 1)
        maps = ", ".join(f"{count} on map {number}" for number, count in counts if count)
        parts.append(f"{object_name(explanation, index)}: {maps or 'none'}")
    return "; ".join(parts)
