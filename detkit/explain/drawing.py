"""How the steps of detectors are drawn, each kind by one function whatever detector tells it, and what these share."""

from functools import singledispatch

import numpy as np

from detkit.errors import UserError
from detkit.explain.canvas import Canvas, Key, Kind, Section
from detkit.explain.explanation import Explanation
from detkit.models.trace import MapShape, Step
from detkit.viz.draw import colour

LEGEND = 20  # most classes in a legend


@singledispatch
def draw(step: Step, explanation: Explanation) -> list[Section]:
    """Return the sections of the page that show one step; which function draws it hangs on the step's type.

    The functions of detkit's own steps are in the modules beside this one. A step of a new kind registers its own:

        @draw.register
        def draw_mine(step: MyStep, explanation: Explanation) -> list[Section]: ...
    """
    name = type(step).__name__
    raise UserError(f"{name}: nothing draws this step of the detector; register one with detkit.explain.draw.register")


def detection_name(explanation: Explanation, index: int) -> str:
    """How a detection is called in every section: number, class and score."""
    return f"{index + 1} {explanation.classes[explanation.labels[index]]} {explanation.scores[index]:.2f}"


def class_legend(
    explanation: Explanation, labels: np.ndarray | None = None, kind: Kind = "solid", what: str = ""
) -> list[Key]:
    """The colours of the classes among labels (N,), by default the candidates'; what: comes before their names."""
    shown = np.unique(explanation.nms.labels if labels is None else labels)[:LEGEND].tolist()
    return [Key(colour(label), kind, what + explanation.classes[label]) for label in shown]


def draw_truth(canvas: Canvas, explanation: Explanation) -> None:
    """Draw the annotated objects, named by letters, so that they differ from detections."""
    if explanation.truth is not None:
        for index, box in enumerate(explanation.truth.boxes):
            canvas.truth(box, object_name(explanation, index))


def object_name(explanation: Explanation, index: int) -> str:
    """How an annotated object is called in every section: letter and class."""
    assert explanation.truth is not None
    return f"{letter(index)} {explanation.classes[explanation.truth.labels[index]]}"


def letter(index: int) -> str:
    """0 -> a, 25 -> z, 26 -> a1, ..."""
    return "abcdefghijklmnopqrstuvwxyz"[index % 26] + (str(index // 26) if index >= 26 else "")


def plural(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def map_title(index: int, shape: MapShape) -> str:
    return f"map {index + 1}: {shape.columns} x {shape.rows}"


def map_extent(explanation: Explanation, shape: MapShape) -> tuple[float, float, float, float]:
    """The box that a feature map covers, in pixels of the image."""
    down, across = explanation.factors.tolist()
    bottom, right = shape.top + shape.rows * shape.cell_height, shape.left + shape.columns * shape.cell_width
    return (shape.left * across, shape.top * down, right * across, bottom * down)
