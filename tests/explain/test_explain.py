"""What an explanation says is what the detector did."""

from typing import Any

import numpy as np
import pytest
import torch

from detkit.config import Config, DataConfig, DetectConfig, TrainConfig
from detkit.data.image_truth import Truth
from detkit.explain.recording import record
from detkit.explain.trace import Explanation, RegionTrace, SSDTrace, YOLOTrace, explain
from detkit.models import Detector
from detkit.ops import box_iou, match_ssd
from tests import zoo
from tests.builders import random_image

MODELS = ("fast_rcnn", "faster_rcnn", "rcnn", "sppnet", "ssd", "yolov1")
BOXES = ((8.0, 10.0, 60.0, 70.0), (50.0, 20.0, 110.0, 90.0))
TRUTH = Truth.of(np.array(BOXES, np.float32), np.array([0, 1]), size=(130, 100), origin="a test")
SCORES = {"ssd": 0.34, "torchvision_ssd": 0.35}


def image() -> np.ndarray:
    return np.ascontiguousarray(random_image(100, 130)[0].permute(1, 2, 0).numpy())


def build(name: str, **keys: Any) -> tuple[Any, Config]:
    detector = zoo.build(name, **keys).eval()
    data = DataConfig(root="", proposal_count=30)
    settings = DetectConfig(score_threshold=SCORES.get(name, 0.0), detections_per_image=20, proposals="single")
    detector.experiment = Config(detector.config, data, TrainConfig(iterations=1), settings)
    return detector, detector.experiment


def told(name: str, truth: Truth | None = TRUTH, **keys: Any) -> tuple[Any, Explanation]:
    detector, config = build(name, **keys)
    return detector, explain(detector, image(), config, truth)


@pytest.mark.parametrize("name", [*MODELS, "torchvision_ssd"])
def test_its_final_boxes_are_those_of_detect(name: str) -> None:
    detector, config = build(name)
    before = set(vars(detector))
    found = explain(detector, image(), config, TRUTH)
    boxes, scores, labels = detector.detect(image(), score=config.detect.score_threshold)[0].image(0)
    assert len(boxes) > 5
    work = found.work
    for own in ((found.boxes, found.scores, found.labels), (work.boxes[work.final], work.scores[work.final])):
        np.testing.assert_allclose(own[0], boxes, atol=1e-3)
        np.testing.assert_array_equal(own[1], scores)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(work.labels[work.final], labels)
    # nothing listens any more
    assert set(vars(detector)) == before
    assert not any(module._forward_hooks for module in detector.modules())


@pytest.mark.parametrize("name", ["ssd", "faster_rcnn"])
def test_who_removed_whom(name: str) -> None:
    _, found = told(name)
    work = found.work
    assert (np.diff(work.scores) <= 0).all()
    removed = np.flatnonzero((work.by >= 0) & (work.by != np.arange(len(work.by))))
    assert len(removed)
    overlap = box_iou(torch.from_numpy(work.boxes), torch.from_numpy(work.boxes)).numpy()
    winners = work.by[removed]
    assert (work.by[winners] == winners).all()
    assert (winners < removed).all()
    assert (work.labels[winners] == work.labels[removed]).all()
    # rescaled to the image after they were compared
    assert (overlap[winners, removed] > work.iou - 1e-3).all()
    assert sum(len(work.removed(int(row))) for row in np.unique(winners)) == len(removed)


def test_maps_and_matches_of_ssd() -> None:
    detector, found = told("ssd")
    trace = found.trace
    assert isinstance(trace, SSDTrace)
    assert trace.learnt is not None
    factor = np.array([130, 100] * 2) / 96
    np.testing.assert_allclose(trace.anchors, detector.anchors.numpy() * factor, rtol=1e-5)
    cells = np.array(trace.sides)[trace.level]
    centre = (trace.anchors[:, :2] + trace.anchors[:, 2:]) / 2 / [130, 100]
    # each default box lies in the middle of a cell of its map
    np.testing.assert_allclose((centre * cells[:, None]) % 1, 0.5, atol=1e-3)
    objects = torch.tensor(BOXES)[None] / torch.from_numpy(factor).float()
    valid = torch.ones(1, 2, dtype=torch.bool)
    wanted = match_ssd(objects, valid, None, detector.anchors, detector.match_iou).index[0].numpy()
    positive = trace.learnt.owner >= 0
    np.testing.assert_array_equal(trace.learnt.owner[positive], wanted[wanted >= 0])
    np.testing.assert_allclose(trace.learnt.boxes[positive], trace.anchors[wanted >= 0])
    np.testing.assert_array_equal(trace.learnt_level[positive], trace.level[wanted >= 0])
    assert (~positive).sum() == 3 * positive.sum()


def test_cells_of_yolo() -> None:
    detector, found = told("yolov1")
    trace = found.trace
    assert isinstance(trace, YOLOTrace)
    assert trace.owner is not None
    assert trace.responsible is not None
    assert trace.iou is not None
    for number, (x1, y1, x2, y2) in enumerate(BOXES):
        column, row = int((x1 + x2) / 2 / 130 * trace.grid), int((y1 + y2) / 2 / 100 * trace.grid)
        cell = row * trace.grid + column
        assert trace.owner[cell] == number
        assert trace.responsible[cell].sum() == 1
        overlap = box_iou(torch.from_numpy(trace.boxes[cell]), torch.tensor(BOXES[number])[None])[:, 0].numpy()
        np.testing.assert_allclose(trace.iou[cell], overlap, atol=1e-4)
        assert trace.iou[cell][trace.responsible[cell]] == trace.iou[cell].max()
    assert trace.responsible.sum() == 2
    # a score is the confidence times the class score of the cell that it came from
    cell, box = np.divmod(found.work.source, detector.config.boxes)
    product = trace.confidence[cell, box] * trace.classes[cell, found.work.labels]
    np.testing.assert_allclose(found.work.scores, product, rtol=1e-5)


@pytest.mark.parametrize("name", ["fast_rcnn", "faster_rcnn", "rcnn", "sppnet"])
def test_regions(name: str) -> None:
    detector, found = told(name)
    trace = found.trace
    assert isinstance(trace, RegionTrace)
    assert trace.learnt is not None
    own = list(dict.fromkeys(found.work.source[found.work.final].tolist()))[:12]
    assert trace.shown[: len(own)].tolist() == own
    assert all(len(level) == len(trace.shown) for level in trace.pooled)
    overlap = box_iou(torch.from_numpy(trace.learnt.boxes), torch.tensor(BOXES)).numpy()
    positive = trace.learnt.owner >= 0
    assert positive.any()
    assert (overlap[positive].argmax(1) == trace.learnt.owner[positive]).all()
    assert (overlap[positive].max(1) >= detector.config.fg_iou - 1e-3).all()
    assert (overlap[~positive].max(1) < detector.config.bg_iou[1] + 1e-3).all()
    assert len(trace.learnt.owner) <= detector.config.batch_size_per_image


def test_proposals_of_the_rpn() -> None:
    _, found = told("faster_rcnn")
    assert isinstance(found.trace, RegionTrace)
    rpn = found.trace.rpn
    assert rpn is not None
    np.testing.assert_allclose(rpn.work.boxes[rpn.work.final], found.trace.regions, atol=1e-3)
    for anchors, heat, (rows, columns) in zip(rpn.anchors, rpn.objectness, rpn.shapes):
        assert len(anchors) == len(heat) == rows * columns * 6
    assert rpn.learnt is not None
    assert (rpn.learnt.owner >= 0).any()


def test_pooled_features_are_those_of_the_region() -> None:
    _, found = told("sppnet", pyramid=[3, 1])
    trace = found.trace
    assert isinstance(trace, RegionTrace)
    assert [level.shape[1:] for level in trace.pooled] == [(3, 3), (1, 1)]
    # of a maximum over bins, the whole's is the largest, channel by channel, and so on the mean
    assert (trace.pooled[1][:, 0, 0] >= trace.pooled[0].max((1, 2)) - 1e-5).all()
    assert trace.scale is not None
    assert set(trace.scale.tolist()) == {96}


def test_without_truth_nothing_is_learnt() -> None:
    _, found = told("ssd", None)
    assert isinstance(found.trace, SSDTrace)
    assert found.trace.learnt is None


@pytest.mark.parametrize("name", MODELS)
def test_a_photo_without_detections_or_objects(name: str) -> None:
    detector, config = build(name)
    config.detect.score_threshold = 99.0
    nothing = TRUTH.take(slice(0))
    found = explain(detector, image(), config, nothing)
    assert len(found.boxes) == len(found.work.scores) == 0


def test_an_error_on_the_way_leaves_the_detector_as_it_was() -> None:
    detector: Detector = zoo.build("ssd")
    with pytest.raises(RuntimeError, match="on purpose"), record(detector, {"maps": lambda maps: maps}):  # noqa: PT012
        assert "maps" in vars(detector)
        raise RuntimeError("on purpose")
    assert "maps" not in vars(detector)
