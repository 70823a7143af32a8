"""What an explanation says is what the detector did."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit.data.image_truth import Truth
from detkit.explain import draw_sections, explain
from detkit.explain.anchors import SHADES, anchor_shades
from detkit.explain.explanation import suppress
from detkit.explain.proposals import proposal_suppression
from detkit.explain.regions import shown_regions
from detkit.explain.samples import levels_of_objects
from detkit.inference.fast import Fast
from detkit.models.trace import (
    AnchorStep,
    GridStep,
    MapStep,
    MaskStep,
    MaskTargetStep,
    ObjectnessStep,
    PooledStep,
    ProposalNMSStep,
    RegressionStep,
    ResponsibleStep,
    SampleStep,
)
from detkit.ops import box_iou, match_ssd, scale
from tests.explain.explained import BOXES, FACTORS, MODELS, TRUTH, build, explained, image, step_of


@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize("name", [*MODELS, "torchvision_ssd"])
def test_its_final_boxes_are_those_of_detect(name: str, amp: str) -> None:
    detector, config = build(name)
    config.train.amp = amp
    detector.fast = Fast(detector)
    before = set(vars(detector))
    explanation = explain(detector.train(), image(), config, TRUTH)
    assert detector.training
    boxes, scores, labels = detector.detect(image(), score=config.detect.score_threshold)[0].image(0)
    assert len(boxes) > 5
    nms = explanation.nms
    np.testing.assert_array_equal(explanation.boxes, boxes)
    np.testing.assert_array_equal(explanation.scores, scores)
    np.testing.assert_array_equal(explanation.labels, labels)
    # what is recorded of NMS leads to the same
    np.testing.assert_allclose(nms.boxes[nms.kept], boxes, atol=1e-3)
    np.testing.assert_array_equal(nms.scores[nms.kept], scores)
    np.testing.assert_array_equal(nms.labels[nms.kept], labels)
    np.testing.assert_array_equal(nms.source[nms.kept], explanation.source)
    # the detector was asked, not changed
    assert set(vars(detector)) == before
    assert not any(module._forward_hooks for module in detector.modules())


def greedy(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, top_k: int) -> list[int]:
    """Return which of the candidates (M,), best first, removed each: NMS, word for word."""
    order = scores.argsort(descending=True, stable=True).tolist()
    overlap = box_iou(boxes, boxes)
    by = [-1] * len(order)
    looked_at = dict.fromkeys(labels.tolist(), 0)
    for rank, row in enumerate(order):
        label = int(labels[row])
        if looked_at[label] == top_k:
            continue
        looked_at[label] += 1
        winners = (
            winner
            for winner in range(rank)
            if by[winner] == winner and labels[order[winner]] == label and overlap[order[winner], row] > iou
        )
        by[rank] = next(winners, rank)
    return by


@given(
    st.lists(st.tuples(*[st.integers(0, 12)] * 4, st.integers(0, 6), st.integers(0, 1)), max_size=12),
    st.sampled_from([0.25, 0.5, 0.9]),
    st.integers(1, 8),
    st.integers(1, 8),
)
@settings(deadline=None)
def test_suppression_is_greedy_nms(rows: list[tuple[int, ...]], iou: float, top_k: int, max_out: int) -> None:
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    boxes = torch.cat((values[:, :2], values[:, :2] + values[:, 2:4]), 1)
    scores, labels = values[:, 4], values[:, 5].long()
    nms = suppress(
        boxes, scores, labels, torch.arange(len(rows)), torch.tensor([2.0, 3.0]), iou=iou, top_k=top_k, max_out=max_out
    )
    by = greedy(boxes, scores, labels, iou, top_k)
    assert nms.by.tolist() == by
    assert nms.kept.tolist() == [row for row, winner in enumerate(by) if row == winner][:max_out]
    np.testing.assert_array_equal(nms.scores, -np.sort(-scores.numpy()))
    np.testing.assert_array_equal(nms.boxes, boxes.numpy()[nms.source] * [3, 2, 3, 2])
    np.testing.assert_array_equal(nms.labels, labels.numpy()[nms.source])
    removed = [row for row, winner in enumerate(by) if winner not in (-1, row)]
    assert nms.removed.tolist() == removed
    assert sorted(np.concatenate([nms.removed_by(row) for row in range(len(rows))] or [[]]).tolist()) == removed
    assert all(by[row] == 0 for row in nms.removed_by(0))


@pytest.mark.parametrize("name", ["ssd", "faster_rcnn"])
def test_who_removed_whom(name: str) -> None:
    _, explanation = explained(name)
    nms = explanation.nms
    assert (np.diff(nms.scores) <= 0).all()
    assert len(nms.removed)
    overlap = box_iou(torch.from_numpy(nms.boxes), torch.from_numpy(nms.boxes)).numpy()
    winners = nms.by[nms.removed]
    assert nms.stays[winners].all()
    assert (winners < nms.removed).all()
    assert (nms.labels[winners] == nms.labels[nms.removed]).all()
    # rescaled to the image after they were compared
    assert (overlap[winners, nms.removed] > nms.iou - 1e-3).all()


def test_anchors_maps_and_matches_of_ssd() -> None:
    detector, explanation = explained("ssd")
    anchors, sample, maps = explanation.steps
    assert isinstance(anchors, AnchorStep)
    assert isinstance(sample, SampleStep)
    assert isinstance(maps, MapStep)
    boxes = torch.cat(anchors.boxes)
    np.testing.assert_allclose(explanation.in_image(boxes), detector.anchors.numpy() * FACTORS, rtol=1e-5)
    # each default box lies in the middle of a cell of its map
    cells = torch.tensor([(shape.columns, shape.rows) for shape in maps.maps])[maps.level]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / 96 * cells
    np.testing.assert_allclose(centre % 1, 0.5, atol=1e-3)
    np.testing.assert_array_equal(maps.level, np.repeat(np.arange(4), [len(part) for part in anchors.boxes]))
    assert [shape.columns * shape.cell_width for shape in maps.maps] == [96] * 4

    objects = torch.tensor(BOXES)[None] / torch.from_numpy(FACTORS).float()
    valid = torch.ones(1, 2, dtype=torch.bool)
    expected = match_ssd(objects, valid, None, detector.anchors, detector.config.match_iou).index[0].numpy()
    index = sample.matched_gt_index.numpy()
    positive = index >= 0
    np.testing.assert_array_equal(index[positive], expected[expected >= 0])
    np.testing.assert_array_equal(sample.boxes[positive], boxes[expected >= 0])
    assert sample.level is not None
    np.testing.assert_array_equal(sample.level[positive], maps.level[expected >= 0])
    assert (~positive).sum() == 3 * positive.sum()


def test_cells_of_yolo() -> None:
    detector, explanation = explained("yolov1")
    grid, step = step_of(explanation, GridStep), step_of(explanation, ResponsibleStep)
    for index, (x1, y1, x2, y2) in enumerate(BOXES):
        column, row = int((x1 + x2) / 2 / 130 * step.grid), int((y1 + y2) / 2 / 100 * step.grid)
        cell = row * step.grid + column
        assert step.matched_gt_index[cell] == index
        assert step.responsible[cell].sum() == 1
        boxes = torch.from_numpy(explanation.in_image(step.boxes[cell]))
        overlap = box_iou(boxes, torch.tensor(BOXES[index])[None])[:, 0].numpy()
        np.testing.assert_allclose(step.iou[cell], overlap, atol=1e-4)
        assert step.iou[cell][step.responsible[cell]] == step.iou[cell].max()
    assert step.responsible.sum() == 2
    # a score is the confidence times the class score of the cell that it came from
    cell, box = np.divmod(explanation.nms.source, detector.config.boxes)
    product = grid.confidence[cell, box] * grid.classes[cell, explanation.nms.labels]
    np.testing.assert_allclose(explanation.nms.scores, product, rtol=1e-5)


@pytest.mark.parametrize("name", ["fast_rcnn", "faster_rcnn", "rcnn", "sppnet"])
def test_regions(name: str) -> None:
    detector, explanation = explained(name)
    pooled, sample = step_of(explanation, PooledStep), step_of(explanation, SampleStep, "regions")
    regions = step_of(explanation, RegressionStep).regions
    np.testing.assert_array_equal(pooled.regions, regions)
    shown = shown_regions(pooled, explanation).tolist()
    detected = list(dict.fromkeys(explanation.source.tolist()))[:12]
    assert shown[: len(detected)] == detected
    others = shown[len(detected) :]
    assert not set(others) & set(explanation.nms.source.tolist())
    assert pooled.scores[others].isfinite().all()
    assert (pooled.scores[others].diff() <= 0).all()
    overlap = box_iou(torch.from_numpy(explanation.in_image(sample.boxes)), torch.tensor(BOXES)).numpy()
    index = sample.matched_gt_index.numpy()
    positive = index >= 0
    assert positive.any()
    assert (overlap[positive].argmax(1) == index[positive]).all()
    assert (overlap[positive].max(1) >= detector.config.fg_iou - 1e-3).all()
    assert (overlap[~positive].max(1) < detector.config.bg_iou[1] + 1e-3).all()
    assert len(index) <= detector.config.batch_size_per_image


def test_proposals_of_the_rpn() -> None:
    _, explanation = explained("faster_rcnn")
    step = step_of(explanation, ProposalNMSStep)
    nms = proposal_suppression(step, explanation)
    regions = step_of(explanation, RegressionStep).regions
    np.testing.assert_allclose(nms.boxes[nms.kept], explanation.in_image(regions)[: len(nms.kept)], atol=1e-3)
    anchors, objectness = step_of(explanation, AnchorStep), step_of(explanation, ObjectnessStep)
    for boxes, scores, shape in zip(anchors.boxes, objectness.scores, anchors.maps):
        assert len(boxes) == len(scores) == shape.rows * shape.columns * 6
    assert (step_of(explanation, SampleStep, "anchor-matching").matched_gt_index >= 0).any()


@pytest.mark.parametrize("name", ["rcnn", "sppnet", "fast_rcnn", "faster_rcnn"])
def test_regions_are_pooled_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, config = build(name)
    pool, shapes = detector.features.pool, []

    def listen(prepared: Any, boxes: Tensor) -> Tensor:
        shapes.append(boxes.shape[1])
        return pool(prepared, boxes)

    monkeypatch.setattr(detector.features, "pool", listen)
    explanation = explain(detector, image(), config, TRUTH)
    assert sum(shapes) == len(step_of(explanation, RegressionStep).regions)


def test_pooled_features_are_those_of_the_region() -> None:
    _, explanation = explained("sppnet", pyramid=[3, 1])
    step = step_of(explanation, PooledStep)
    assert [level.shape[1:] for level in step.pooled] == [(3, 3), (1, 1)]
    # a maximum over the region is the largest of those over its bins, channel by channel, and so on the mean
    assert (step.pooled[1][:, 0, 0] >= step.pooled[0].amax((1, 2)) - 1e-5).all()
    assert set(step.scales.tolist()) == {96}


def test_crops_are_those_of_the_shown_regions() -> None:
    _, explanation = explained("rcnn")
    step = step_of(explanation, PooledStep)
    rows = torch.tensor([3, 0])
    crops = step.crop(rows)
    assert crops.shape == (2, 3, 96, 96)
    np.testing.assert_array_equal(crops[1], step.crop(torch.tensor([0]))[0])
    assert step_of(explained("sppnet")[1], PooledStep).crop(rows) is None


@pytest.mark.parametrize("name", MODELS)
def test_without_truth_nothing_is_said_of_training(name: str) -> None:
    _, explanation = explained(name, None)
    assert not [step for step in explanation.steps if isinstance(step, SampleStep | ResponsibleStep)]


@pytest.mark.parametrize("name", MODELS)
def test_a_weak_detector_shows_its_best_and_says_so(name: str) -> None:
    detector, config = build(name)
    config.detect.score_threshold = -99.0
    every = explain(detector, image(), config)
    assert every.note == ""
    config.detect.score_threshold = 99.0
    explanation = explain(detector, image(), config)
    assert config.detect.score_threshold == 99
    nms, threshold = explanation.nms, explanation.settings.score_threshold
    assert f"No box scores above 99, the best has {nms.scores[0]:.3g}: " in explanation.note
    assert explanation.note.endswith(f" above {threshold:.3g}.")
    # the best of all that score anything, 20 and what scores as the last of them, to three digits
    last = min(20, int((every.nms.scores != 0).sum())) - 1
    assert len(nms.scores) > last >= 12
    np.testing.assert_array_equal(nms.scores, every.nms.scores[: len(nms.scores)])
    assert threshold < nms.scores[last] <= threshold + 0.02 * abs(threshold)
    assert len(explanation.boxes) > 0
    (candidates,) = (section for section in draw_sections(explanation) if section.name == "candidates")
    assert f"above {threshold:g}" in candidates.text


@pytest.mark.parametrize("name", MODELS)
def test_an_image_without_detections_or_objects(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, config = build(name)
    config.detect.score_threshold = 99.0
    monkeypatch.setattr("detkit.explain.explanation.ENOUGH", 0)
    nothing = TRUTH.take(slice(0))
    explanation = explain(detector, image(), config, nothing)
    assert len(explanation.boxes) == len(explanation.nms.scores) == 0
    assert draw_sections(explanation)


def test_an_object_too_small_for_training_keeps_the_numbers_of_the_others() -> None:
    boxes = np.concatenate([np.array([[5, 5, 5.5, 5.5]], np.float32), TRUTH.boxes])
    truth = Truth.of(boxes, np.array([1, 0, 1]), size=(130, 100), origin="a test")
    _, explanation = explained("ssd", truth)
    sample = step_of(explanation, SampleStep, "matching")
    assert set(sample.matched_gt_index.clamp(min=-1).tolist()) == {-1, 1, 2}


@pytest.mark.parametrize(("difficult", "trained_on"), [(False, {1}), (True, {0, 1})])
def test_difficult_objects_are_trained_on_where_the_config_says_so(difficult: bool, trained_on: set[int]) -> None:
    detector, config = build("ssd")
    config.data.difficult = difficult
    truth = replace(TRUTH, difficult=np.array([True, False]))
    sample = step_of(explain(detector, image(), config, truth), SampleStep, "matching")
    assert set(sample.matched_gt_index[sample.matched_gt_index >= 0].tolist()) == trained_on


def test_levels_of_objects() -> None:
    _, explanation = explained("ssd")
    text = levels_of_objects(np.array([0, 2, 2, 1]), np.array([0, 0, 0, -1]), explanation)
    assert text == "a a: 1 on map 1, 2 on map 3; b b: none"


def test_each_size_of_anchors_has_a_colour() -> None:
    side = np.array([92, 91, 128, 181, 183, 363])  # rounded to pixels, as authors' anchors are
    boxes = np.stack((-side / 2, -side / 2, side / 2, side / 2), 1)
    assert anchor_shades(boxes) == [SHADES[size] for size in (0, 0, 0, 1, 1, 2)]


def test_masks_are_those_that_detect_takes() -> None:
    detector, explanation = explained("mask_rcnn")
    found = detector.detect(image(), score=0.0)[0].extra["masks"]
    step = step_of(explanation, MaskStep)
    boxes = scale(torch.from_numpy(explanation.boxes), 1 / explanation.factors)
    rows = torch.arange(len(boxes))
    masks = step.of_boxes(boxes)[rows, torch.from_numpy(explanation.labels)]
    assert len(boxes) > 5
    torch.testing.assert_close(masks, found, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(explanation.scores, step.scores[explanation.source, explanation.labels])


def test_what_a_mask_is_to_be_is_the_object_where_the_region_is() -> None:
    _, explanation = explained("mask_rcnn")
    step, sample = step_of(explanation, MaskTargetStep), step_of(explanation, SampleStep, "regions")
    positive = sample.matched_gt_index >= 0
    assert torch.equal(step.regions, sample.boxes[positive])
    assert torch.equal(step.matched_gt_index, sample.matched_gt_index[positive])
    regions = explanation.in_image(step.regions)
    assert {*step.matched_gt_index.tolist()} == {0, 1}
    for region, index, mask in zip(regions, step.matched_gt_index.tolist(), step.masks):
        (left, top, right, bottom), side = BOXES[index], mask.shape[0]
        centre = (np.arange(side) + 0.5) / side
        x, y = (region[axis] + centre * (region[axis + 2] - region[axis]) for axis in (0, 1))
        inside = ((y > top) & (y < bottom))[:, None] & ((x > left) & (x < (left + right) / 2))
        # but for the cells at its edge
        assert (np.abs(mask.numpy() - inside) > 0.5).sum() <= 4 * side
        assert 0 <= mask.min() <= mask.max() <= 1
        assert inside.any()
