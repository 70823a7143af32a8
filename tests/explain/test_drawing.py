"""What is drawn of an explanation is what it says."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detkit.errors import UserError
from detkit.explain import Canvas, Explanation, Panel, Section, draw, draw_sections, explain
from detkit.explain.masks import RANGE
from detkit.explain.proposals import draw_proposals, proposal_suppression
from detkit.explain.regions import heat, shown_regions
from detkit.models.dense import DenseDetector
from detkit.models.trace import (
    AnchorStep,
    GridStep,
    MapStep,
    MaskStep,
    MaskTargetStep,
    PooledStep,
    ProposalNMSStep,
    ProposalStep,
    RegressionStep,
    ResponsibleStep,
    SampleStep,
    Step,
    Trace,
)
from detkit.structures import Images, InputSpec, Predictions, Targets
from detkit.viz.draw import colour
from tests.explain.explained import BOXES, TRUTH, config_of, explained, image, step_of

Drawn = list[tuple[list[float], Any, bool]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Return a list that fills with the outlines that are drawn one by one: box, colour, whether dashed."""
    outlines: Drawn = []

    def box(self: Canvas, box: Any, shade: Any, width: float = 1.0, dashed: bool = False, alpha: float = 1.0) -> None:
        outlines.append((np.asarray(box).tolist(), shade, dashed))

    monkeypatch.setattr(Canvas, "box", box)
    return outlines


def test_detections_are_drawn_in_their_colours_the_best_on_top(drawn: Drawn) -> None:
    _, explanation = explained("ssd", None)
    draw_sections(explanation)
    boxes = [(box.tolist(), colour(int(label)), False) for box, label in zip(explanation.boxes, explanation.labels)]
    assert drawn[-len(boxes) :] == boxes[::-1]


def test_detections_are_drawn_on_the_map_that_they_came_from(drawn: Drawn) -> None:
    _, explanation = explained("ssd", None)
    step = step_of(explanation, MapStep)
    draw(step, explanation)
    levels = step.level.numpy()[explanation.source]
    assert len(set(levels.tolist())) > 1
    by_map = np.concatenate([explanation.boxes[levels == level] for level in range(len(step.maps))])
    assert [box for box, _, _ in drawn] == by_map.tolist()


def test_regions_are_drawn_with_the_boxes_that_they_became(drawn: Drawn) -> None:
    _, explanation = explained("fast_rcnn")
    step = step_of(explanation, RegressionStep)
    draw(step, explanation)
    regions = explanation.in_image(step.regions)
    rows = range(len(explanation.boxes))
    pairs = [(regions[explanation.source[row]].tolist(), explanation.boxes[row].tolist()) for row in rows]
    assert [box for box, _, dashed in drawn if dashed] == [region for region, _ in pairs[::-1]]
    assert [box for box, _, dashed in drawn if not dashed] == [box for _, box in pairs[::-1]]


def test_boxes_that_answer_for_an_object_have_its_colour(drawn: Drawn) -> None:
    _, explanation = explained("yolov1")
    step = step_of(explanation, ResponsibleStep)
    draw(step, explanation)
    for index in range(len(BOXES)):
        chosen = step.boxes[(step.matched_gt_index == index)[:, None] & step.responsible]
        assert [box for box, shade, _ in drawn if shade == colour(index)] == explanation.in_image(chosen).tolist()


@pytest.mark.parametrize("name", ["ssd", "faster_rcnn"])
def test_anchors_are_those_of_the_cell_below_the_best_detection(name: str, drawn: Drawn) -> None:
    _, explanation = explained(name)
    centre = np.array([117.0, 40.0])  # far to the right, above the middle
    explanation = replace(explanation, boxes=np.concatenate((centre - 5, centre + 5))[None])
    step = step_of(explanation, AnchorStep)
    draw(step, explanation)
    expected = []
    for boxes, shape in zip(step.boxes, step.maps):
        column, row = (int(value) for value in centre / (130, 100) * (shape.columns, shape.rows))
        a_cell = len(boxes) // (shape.rows * shape.columns)
        first = (row * shape.columns + column) * a_cell
        expected += explanation.in_image(boxes[first : first + a_cell]).tolist()
    assert [box for box, _, _ in drawn] == expected
    assert name == "ssd" or any(shape.rows != shape.columns for shape in step.maps)


def test_boxes_of_the_grid_have_the_class_of_their_cell_the_surest_on_top(drawn: Drawn) -> None:
    _, explanation = explained("yolov1", None)
    step = step_of(explanation, GridStep)
    draw(step, explanation)
    labels = step.classes.argmax(1).tolist()
    assert set(labels) == {0, 1}
    boxes = explanation.in_image(step.boxes)
    of_box = {
        tuple(boxes[cell, number].tolist()): (colour(labels[cell]), float(step.confidence[cell, number]))
        for cell, number in np.ndindex(*step.confidence.shape)
    }
    assert len(of_box) == len(drawn) == step.confidence.numel()
    assert [shade for _, shade, _ in drawn] == [of_box[tuple(box)][0] for box, _, _ in drawn]
    confidence = [of_box[tuple(box)][1] for box, _, _ in drawn]
    assert confidence == sorted(confidence)


def test_captions_count_what_is_drawn() -> None:
    _, explanation = explained("ssd")
    sample, maps = step_of(explanation, SampleStep, "matching"), step_of(explanation, MapStep)
    positive = int((sample.matched_gt_index >= 0).sum())
    negative = len(sample.boxes) - positive
    assert positive != negative
    (section,) = draw(sample, explanation)
    assert [panel.caption for panel in section.panels] == [f"{positive} matched", f"{negative} hard negatives"]
    candidates, final = (
        np.bincount(maps.level.numpy()[rows], minlength=4) for rows in (explanation.nms.source, explanation.source)
    )
    (section,) = draw(maps, explanation)
    for level, panel in enumerate(section.panels):
        count = candidates[level]
        assert panel.caption.endswith(f", {count} box{'' if count == 1 else 'es'}, {final[level]} final")

    _, explanation = explained("faster_rcnn")
    step = step_of(explanation, ProposalNMSStep)
    nms = proposal_suppression(step, explanation)
    (section,) = draw(step, explanation)
    expected = [f"{len(nms.removed)} removed", f"{len(nms.kept)} proposals"]
    assert [panel.caption for panel in section.panels[:2]] == expected


def test_regions_of_high_score_follow_those_of_detections() -> None:
    _, explanation = explained("fast_rcnn")
    step = step_of(explanation, PooledStep)
    scores = torch.tensor([0.1, -torch.inf, 0.9, 0.95, 0.3])
    nms = replace(explanation.nms, source=np.array([3, 4]))
    explanation = replace(explanation, source=np.array([4]), nms=nms)
    assert shown_regions(replace(step, scores=scores), explanation).tolist() == [4, 2, 0]


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_the_mask_of_the_class_stands_first_and_behind_it_those_that_scored_next(name: str) -> None:
    _, explanation = explained("mask_rcnn")
    label = "abcd".index(name)
    explanation = replace(explanation, classes=("a", "b", "c", "d"), labels=np.array([label]), source=np.array([1]))
    explanation = replace(explanation, boxes=np.array([[10.0, 20, 50, 40]]), scores=np.array([0.75]))
    given: list[list[float]] = []

    def of_boxes(boxes: Tensor) -> Tensor:
        given.extend(explanation.in_image(boxes).tolist())
        return torch.linspace(0, 1, 4).view(1, 4, 1, 1).expand(1, 4, 8, 8)

    scores = torch.tensor([[0.0] * 4, [0.1, 0.3, 0.0, 0.2]])
    (section,) = draw(MaskStep(scores, of_boxes, 0.5), explanation)
    np.testing.assert_allclose(given, explanation.boxes, rtol=1e-5)
    others = [other for other in "bdac" if other != name][:2]
    (panel,) = section.panels
    expected = f"1 {name} 0.75: mask of {name}; of {' and '.join(others)}, not taken; "
    assert panel.caption.startswith(expected)
    # the mask is about as large as the box where it is above a half, and else nothing
    pixels = int(panel.caption.removeprefix(expected).removesuffix(" pixels above 0.5"))
    assert (700 < pixels < 1000) if label > 1 else pixels == 0
    red = [heat(np.full((1, 1), "abcd".index(one) / 3), RANGE, 1)[0, 0, 0] for one in (name, *others)]
    assert panel.drawing[140, [140 + 286 * number for number in (1, 2, 3)], 0].tolist() == red


def test_without_detections_or_masks_a_line_says_so() -> None:
    _, explanation = explained("mask_rcnn")
    nothing = replace(explanation, boxes=explanation.boxes[:0], labels=explanation.labels[:0])
    (section,) = draw(step_of(explanation, MaskStep), nothing)
    assert section.text.startswith("No detection, and so no mask")

    (section,) = draw(step_of(explanation, MaskTargetStep), explanation)
    assert [panel.caption[:9] for panel in section.panels] == ["a a: a re", "b b: a re"]
    _, explanation = explained("mask_rcnn", replace(TRUTH, masks=None))
    (section,) = draw(step_of(explanation, MaskTargetStep), explanation)
    assert section.text.startswith("The objects' masks are not known here")


# a detector and a step of a user's own


@dataclass(frozen=True)
class MiddleStep(Step):
    boxes: Tensor


@draw.register
def draw_middle(step: MiddleStep, explanation: Explanation) -> list[Section]:
    canvas = Canvas(explanation.image)
    canvas.box(explanation.in_image(step.boxes)[0], (255, 0, 0))
    return [Section("middle", "Middle", "One box.", [Panel(canvas.drawing())])]


@dataclass(frozen=True)
class StrangeStep(Step):
    pass


class OneBox(DenseDetector):
    """One box in the middle, that is as likely as the image is bright."""

    def __init__(self, steps: list[Step] | None) -> None:
        super().__init__(None, ("a", "b"), InputSpec((32, 64)))
        self.backbone = nn.Linear(1, 1)  # pyright: ignore[reportAttributeAccessIssue]
        self.steps = steps

    def network(self, pixels: Tensor) -> Tensor:
        return pixels.mean((1, 2, 3)).sigmoid()

    def decode(self, raw: Tensor) -> Predictions:
        boxes = torch.tensor([16.0, 8.0, 48.0, 24.0]).expand(len(raw), 1, 4)
        return Predictions(boxes, torch.stack((raw, 1 - raw), 1).unsqueeze(1))

    def trace(self, images: Images, targets: Targets | None = None) -> Trace:
        trace = super().trace(images, targets)
        return trace if self.steps is None else Trace(trace.predictions, self.steps)


def test_a_detector_without_a_trace_has_the_steps_that_all_share() -> None:
    detector = OneBox(None)
    sections = draw_sections(explain(detector, image(), config_of(detector, 0.0), TRUTH))
    assert [section.name for section in sections] == ["candidates", "nms", "detections"]


def test_a_step_of_a_new_kind_is_drawn_by_the_function_that_is_registered() -> None:
    detector = OneBox([MiddleStep(torch.tensor([[16.0, 8.0, 48.0, 24.0]]))])
    explanation = explain(detector, image(), config_of(detector, 0.0))
    first, *_ = draw_sections(explanation)
    assert first.name == "middle"
    # in pixels of the image, which is enlarged to 960: 960 / 130 = 7.38
    red = np.argwhere((first.panels[0].drawing == (255, 0, 0)).all(-1))
    np.testing.assert_allclose(red.min(0), [25 * 960 / 130, 32.5 * 960 / 130], atol=4)
    np.testing.assert_allclose(red.max(0), [75 * 960 / 130, 97.5 * 960 / 130], atol=4)


def test_a_step_that_nothing_draws_is_one_line() -> None:
    detector = OneBox([StrangeStep()])
    explanation = explain(detector, image(), config_of(detector, 0.0))
    with pytest.raises(UserError, match=r"^StrangeStep: nothing draws this step.*draw\.register$"):
        draw_sections(explanation)


def test_proposals_are_drawn_as_they_came() -> None:
    detector, explanation = explained("fast_rcnn")
    step = step_of(explanation, ProposalStep)
    np.testing.assert_array_equal(step.boxes, step_of(explanation, RegressionStep).regions[: len(step.boxes)])
    section = next(section for section in draw_sections(explanation) if section.name == "proposals")
    # no store is read: `explain` makes them, in the mode that the config names
    assert section.text.startswith(f"{len(step.boxes)} regions of selective search (mode single), made for this image")

    settings = replace(detector.experiment.detect, proposal_side=90)
    (section,) = draw_proposals(step, replace(explanation, settings=settings))
    assert "of selective search (mode single, in a copy of 90 pixels), made for this image now" in section.text


def test_proposals_of_a_detectors_own_are_not_said_to_be_of_selective_search() -> None:
    _, explanation = explained("fast_rcnn")
    (section,) = draw_proposals(ProposalStep(torch.tensor([[1.0, 2, 30, 40]]), given=False), explanation)
    assert section.text == "1 region that may hold an object, whatever its class."
