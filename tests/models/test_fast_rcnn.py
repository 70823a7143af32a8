"""Fast R-CNN: the statistics of its deltas, and the whole path from proposals to detections."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkit import cli
from detkit.config import DetectConfig
from detkit.errors import UserError
from detkit.models import build_detector, postprocess
from detkit.models.fast_rcnn import DeltaStatistics, FastRCNN
from detkit.models.region_head import CODER
from detkit.ops import box_iou
from detkit.structures import Proposals, Targets
from tests.builders import batch_with_proposals, few_regions, objects_of, tiny_fast_rcnn_config
from tests.models.checks import check_detections, check_file
from tests.toys.toy import CLASSES as TOYS
from tests.toys.toy import draw_toys


def test_it_learns_and_detects() -> None:
    torch.manual_seed(0)
    detector = build_detector(tiny_fast_rcnn_config(), ("a", "b"))
    images, targets = batch_with_proposals()
    losses = detector(images, targets)
    assert set(losses) == {"classification", "box"}
    sum(losses.values()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    detector.eval()
    with torch.inference_mode():
        predictions = detector.predict(images)
        found, _ = postprocess(predictions, images, DetectConfig(score_threshold=0.0, detections_per_image=9))
        prepared = detector.features.prepare(images, detector)
        logits, deltas = detector.head(detector.features.pool(prepared, images.proposals.boxes))
    assert predictions.boxes.shape == (2, 40, 2, 4)
    assert (predictions.scores[1, 20:] == -torch.inf).all()
    proposals = images.proposals
    torch.testing.assert_close(predictions.scores[proposals.valid], logits.softmax(-1)[proposals.valid][:, :2])
    expected = CODER.decode(deltas, proposals.boxes.unsqueeze(2))  # without statistics, as built
    torch.testing.assert_close(predictions.boxes, expected)
    check_detections(found, predictions, images)


def test_without_proposals_it_says_so() -> None:
    detector = build_detector(tiny_fast_rcnn_config(), ("a", "b"))
    images, targets = batch_with_proposals()
    with pytest.raises(UserError, match=r"data\.proposals: this detector classifies given regions"):
        detector(replace(images, proposals=None), targets)


def test_a_pyramid_of_one_scale_is_that_size() -> None:
    images, _ = batch_with_proposals()
    plain, pyramid = (
        build_detector(keys, ("a", "b")).eval()
        for keys in (tiny_fast_rcnn_config(), tiny_fast_rcnn_config(scales=[64]))
    )
    pyramid.load_state_dict(plain.state_dict())
    assert pyramid.input.fit(123, 45) == (123, 45)
    with torch.no_grad():
        torch.testing.assert_close(pyramid.predict(images).scores, plain.predict(images).scores)


def test_training_samples_a_scale_for_each_image() -> None:
    torch.manual_seed(0)
    detector = build_detector(tiny_fast_rcnn_config(scales=[32, 64, 96], longest=100), ("a", "b"))
    images, targets = batch_with_proposals()
    shapes = []
    detector.backbone.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].shape)))
    for _ in range(12):
        losses = detector.train()(images, targets)
        assert torch.stack(list(losses.values())).isfinite().all()
    # the batch is as large as the larger of its two images; at 96 the longest side, 120, is cut to 100
    assert {shape[2:] for shape in shapes} == {(32, 40), (64, 80), (80, 100)}
    shapes.clear()
    with torch.no_grad():
        found = detector.eval().predict(images)
    assert [shape[2:] for shape in shapes] == [(32, 40), (64, 80), (80, 100)]
    assert found.boxes.isfinite().all()


class Regions:
    """What a stage asks of a run."""

    def __init__(self, *batches: tuple[Targets, Proposals]) -> None:
        self.batches = batches

    def restore(self, detector: FastRCNN) -> dict[str, Any]:
        return {}

    def regions(self, store: str | None) -> Iterator[tuple[Targets, Proposals]]:
        assert store is None
        return iter(self.batches)


def test_statistics_are_those_of_a_loop() -> None:
    detector = build_detector(tiny_fast_rcnn_config(fg_iou=0.8), ("a", "b", "never seen"))
    assert isinstance(detector, FastRCNN)
    images, targets = batch_with_proposals(80)
    assert images.proposals is not None
    stage = detector.stages()[0]
    assert isinstance(stage, DeltaStatistics)
    stage.run(detector, Regions((targets, images.proposals), (targets, images.proposals)))
    deltas: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for box in (*images.proposals.boxes[0], *targets.boxes[0]):
        overlap = box_iou(targets.boxes[0], box[None])[:, 0]
        if overlap.max() >= 0.8:
            label = int(overlap.argmax())
            deltas[label].append(CODER.encode(targets.boxes[0, label], box).double())
    for label, values in deltas.items():
        rows = torch.stack(values)
        torch.testing.assert_close(detector.head.delta_mean[label].double(), rows.mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(detector.head.delta_std[label].double(), rows.std(0, False), atol=1e-4, rtol=1e-4)
    assert detector.head.delta_mean[2].tolist() == [0] * 4
    assert detector.head.delta_std[2].tolist() == [1] * 4


def test_statistics_of_one_region_and_of_some_that_are_equal() -> None:
    """There is no deviation to divide by: an object without proposals, and two with one each that is alike."""
    detector = build_detector(tiny_fast_rcnn_config(), ("a", "b"))
    assert isinstance(detector, FastRCNN)
    targets = objects_of([[0.0, 0, 40, 40]], [[50.0, 0, 80, 40], [50.0, 0, 80, 40]])
    targets = replace(targets, labels=torch.tensor([[0, -1], [1, 1]]))
    boxes = torch.tensor([[[90.0, 90, 95, 95]] * 2, [[50.0, 0, 80, 40]] * 2])
    detector.stages()[0].run(detector, Regions((targets, Proposals(boxes, torch.ones(2, 2, dtype=torch.bool)))))
    assert not detector.head.delta_mean.any()
    assert detector.head.delta_std.tolist() == [[1] * 4] * 2


def test_statistics_of_nothing() -> None:
    detector = build_detector(tiny_fast_rcnn_config(), ("a", "b"))
    none = torch.zeros(2, 0, dtype=torch.int64)
    proposals = Proposals(torch.tensor([[[2.0, 1, 41, 43]]] * 2), torch.ones(2, 1, dtype=torch.bool))
    detector.stages()[0].run(detector, Regions((Targets(torch.zeros(2, 0, 4), none, none.bool()), proposals)))
    assert not detector.head.delta_mean.any()
    assert detector.head.delta_std.tolist() == [[1] * 4] * 2


def test_statistics_leave_out_ignored_objects() -> None:
    images, targets = batch_with_proposals(80)
    assert images.proposals is not None
    ignore = torch.tensor([[False, True], [False, False]])
    # as if it were not there, itself included; its proposals overlap the other object too little to be that one's
    alone = Targets.pad([(targets.boxes[row, :1], targets.labels[row, :1], ignore[row, :1]) for row in range(2)])
    heads = []
    for objects in (replace(targets, ignore=ignore), alone):
        detector = build_detector(tiny_fast_rcnn_config(), ("a", "b"))
        stage = detector.stages()[0]
        stage.run(detector, Regions((objects, images.proposals)))
        heads.append(detector.head)
    assert torch.equal(heads[0].delta_mean, heads[1].delta_mean)
    assert torch.equal(heads[0].delta_std, heads[1].delta_std)
    assert heads[0].delta_mean[0].all()
    assert heads[0].delta_mean[1].tolist() == [0] * 4
    assert heads[0].delta_std[1].tolist() == [1] * 4


def test_normalised_deltas_are_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions of an object, and what the head would have learned of them: `predict` gives the object's box."""
    detector = build_detector(tiny_fast_rcnn_config(), ("a", "b"))
    assert isinstance(detector, FastRCNN)
    detector.head.delta_mean.normal_()
    detector.head.delta_std.uniform_(0.5, 2)
    images, targets = batch_with_proposals()
    assert images.proposals is not None
    regions, label = images.proposals.boxes[:1, :20], torch.tensor([[0, 1] * 10])
    truth = targets.boxes[:1, [0, 1] * 10]
    normalised = detector.head.normalise(CODER.encode(truth, regions), label)
    outputs = torch.zeros(1, 20, 3), normalised.unsqueeze(2).expand(-1, -1, 2, -1)
    monkeypatch.setattr(detector.head, "forward", lambda _: outputs)
    prepared = [torch.zeros(1, detector.features.shape[0], 8, 10)]
    found = detector.predict_regions(prepared, Proposals(regions, torch.ones(1, 20, dtype=torch.bool)))
    boxes = found.boxes[0, torch.arange(20), label[0]]
    torch.testing.assert_close(boxes, truth[0], atol=1e-3, rtol=1e-4)


RECIPE = """
model:
  name: fast_rcnn
  backbone: {name: tiny}
  size: [64, 80]
  freeze_stages: 0
  freeze_norms: false
  pool_size: 3
  batch_size_per_image: 16
data:
  root: ROOT
  train: [train]
  test: [test]
  proposals: [STORES/train.npz, STORES/test.npz]
  augment: [HorizontalFlip]
train: {iterations: 4, batch: 4, workers: 0}
"""


def test_from_proposals_to_detections(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw_toys(tmp_path / "toys")
    text = RECIPE.replace("ROOT", str(tmp_path / "toys")).replace("STORES", str(tmp_path))
    (tmp_path / "fast.yaml").write_text(text)
    assert cli.main(["train", "fast.yaml", "--out", "run"]) == 2
    assert "no proposals" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert cli.main(["train", "fast.yaml", "data.proposals=[]", "--out", "run"]) == 2
    assert "data.proposals is empty, but fast_rcnn classifies given regions" in capsys.readouterr().err
    for split in ("train", "test"):
        monkeypatch.setattr("detkit.proposals.selective_search.selective_search", few_regions)
        options = ["--split", split, "--out", f"{split}.npz", "--workers", "1"]
        assert cli.main(["proposals", "make", "fast.yaml", *options]) in (0, None)
    assert cli.main(["train", "fast.yaml", "--out", "run"]) in (0, None)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["split"] == "test"
    assert metrics["checkpoint"] == "run/best.pt"
    assert set(metrics["AP"]) == set(TOYS)
    assert metrics["mAP"] == pytest.approx(sum(metrics["AP"].values()) / len(TOYS))
    sides: set[int | None] = set()

    def search(image: np.ndarray, mode: str, seed: int, max_side: int | None) -> np.ndarray:
        sides.add(max_side)
        return few_regions(image, mode, seed)

    monkeypatch.setattr("detkit.proposals.selective_search.selective_search", search)
    arguments = ["detect", "run/best.pt", str(tmp_path / "toys/JPEGImages/test*.jpg"), "--score", "0.01", "--json"]
    for options, side in (([], 500), (["--max-side", "300"], 300)):
        sides.clear()
        assert cli.main([*arguments, *options, "--out", "found"]) in (0, None)
        assert sides == {side}
        assert f"; selective search (fast) in at most {side} pixels" in capsys.readouterr().out
    check_file(tmp_path / "found" / "detections.json", "run/best.pt", score=0.01)
