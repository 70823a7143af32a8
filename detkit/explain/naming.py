"""How the stages of an explanation name things."""

from typing import TYPE_CHECKING

from detkit.explain.canvas import DARK, NEGATIVE, PANEL, Canvas, Key, Kind, Panel
from detkit.viz.draw import colour

if TYPE_CHECKING:
    from detkit.explain.trace import Assignment, Explanation


def final_name(explanation: "Explanation", place: int) -> str:
    """How a final box is called in every stage: number, class and score."""
    work = explanation.work
    row = work.final[place]
    return f"{place + 1} {explanation.classes[work.labels[row]]} {work.scores[row]:.2f}"


def class_legend(explanation: "Explanation") -> list[Key]:
    """The colours of the classes that are seen."""
    seen = sorted({*explanation.work.labels.tolist(), *explanation.labels.tolist()})
    return [Key(colour(label), "solid", explanation.classes[label]) for label in seen[:20]]


def draw_truth(canvas: Canvas, explanation: "Explanation") -> None:
    """Draw the annotated objects, numbered by letters, so that they differ from final boxes."""
    truth = explanation.truth
    if truth is not None:
        for number, (box, label) in enumerate(zip(truth.boxes, truth.labels.tolist())):
            canvas.truth(box, f"{object_name(number)} {explanation.classes[label]}")


def truth_legend(explanation: "Explanation", what: str, kind: Kind = "solid") -> list[Key]:
    """The classes of the annotated objects, and what their colour stands for."""
    assert explanation.truth is not None
    seen = sorted(set(explanation.truth.labels.tolist()))[:20]
    return [Key(colour(label), kind, f"{what} {explanation.classes[label]}") for label in seen]


def assignment_panels(explanation: "Explanation", learnt: "Assignment", names: tuple[str, str]) -> list[Panel]:
    """Boxes of objects in one panel, background in another, called by `names`."""
    assert explanation.truth is not None
    positive = learnt.owner >= 0
    labels = explanation.truth.labels
    panels = []
    for chosen, what in zip((positive, ~positive), names):
        canvas = Canvas(explanation.image, PANEL, DARK)
        shades = [NEGATIVE if owner < 0 else colour(int(labels[owner])) for owner in learnt.owner[chosen]]
        canvas.boxes(learnt.boxes[chosen], shades, [0.9] * len(shades))
        draw_truth(canvas, explanation)
        panels.append(Panel(canvas.drawing(), f"{len(shades)} {what}"))
    return panels


def object_name(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> a1, ..."""
    return "abcdefghijklmnopqrstuvwxyz"[number % 26] + (str(number // 26) if number >= 26 else "")


def many(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
