"""Fast R-CNN: the statistics of its deltas, and the whole path from proposals to detections."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import detkit
from detkit import cli
from detkit.config import BackboneConfig, DetectConfig
from detkit.errors import UserError
from detkit.models import build_detector, postprocess
from detkit.models.fast_rcnn import DeltaStatistics, FastRCNN, FastRCNNConfig
from detkit.models.region_head import CODER
from detkit.ops import box_iou
from detkit.structures import Detections, Images, Predictions, Proposals, Targets
from tests.builders import few_regions, random_image
from tests.toys.toy import CLASSES as TOYS
from tests.toys.toy import draw_toys

SIZES = torch.tensor([[64, 80]] * 2)


def config(**keys) -> FastRCNNConfig:
    small = FastRCNNConfig(
        backbone=BackboneConfig("tiny"),
        size=[64, 96],
        pool_size=3,
        batch_size_per_image=16,
        freeze_stages=0,
        freeze_norms=False,
    )
    return replace(small, **keys)


def batch(count: int = 40) -> tuple[Images, Targets]:
    generator = torch.Generator().manual_seed(0)
    targets = Targets.pad(
        [
            (torch.tensor([[10.0, 20, 40, 50], [30, 5, 70, 40]]), torch.tensor([0, 1]), torch.zeros(2) > 0),
            (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0) > 0),
        ]
    )
    low = torch.rand(2, count, 2, generator=generator) * torch.tensor([50.0, 40])
    boxes = torch.cat((low, low + 10 + torch.rand(2, count, 2, generator=generator) * 20), -1)
    boxes[0, : count // 2] = targets.boxes[0, [0, 1] * (count // 4)] + torch.randn(count // 2, 4, generator=generator)
    given = Proposals.pad([boxes[0], boxes[1, : count // 2]])
    return Images(random_image(64, 80).repeat(2, 1, 1, 1), SIZES, SIZES, ("a", "b"), given), targets


def test_it_learns_and_detects() -> None:
    torch.manual_seed(0)
    detector = build_detector(config(), ("a", "b"))
    images, targets = batch()
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
        logits, deltas = detector.regions(images, images.proposals.boxes)
    assert predictions.boxes.shape == (2, 40, 2, 4)
    assert (predictions.scores[1, 20:] == -torch.inf).all()
    given = images.proposals
    torch.testing.assert_close(predictions.scores[given.valid], logits.softmax(-1)[given.valid][:, :2])
    wanted = CODER.decode(deltas, given.boxes.unsqueeze(2))  # without statistics, as built
    torch.testing.assert_close(predictions.boxes, wanted)
    check_detections(found, predictions, images)


def check_detections(found: Detections, predictions: Predictions, images: Images) -> None:
    """Detections of `keep` 9 are predictions of their class, best first, and the best prediction is among them."""
    assert found.boxes.shape == (2, 9, 4)
    for row in range(2):
        boxes, scores, labels = found.image(row)
        assert len(labels) == 9
        assert (scores.diff() <= 0).all()
        assert scores[0] == predictions.scores[row].max()
        for box, score, label in zip(boxes, scores, labels):
            rows = (predictions.scores[row, :, label] == score).nonzero().flatten()
            height, width = images.sizes[row].tolist()
            limit = torch.tensor([width, height, width, height])
            own = predictions.boxes[row, rows, label].clamp(min=0).minimum(limit)
            assert (own - box).abs().amax(1).min() <= 1e-3


def test_without_proposals_it_says_so() -> None:
    detector = build_detector(config(), ("a", "b"))
    images, targets = batch()
    with pytest.raises(UserError, match=r"data\.proposals: this detector classifies given regions"):
        detector(replace(images, proposals=None), targets)


def test_a_pyramid_of_one_scale_is_that_size() -> None:
    images, _ = batch()
    plain, pyramid = (build_detector(keys, ("a", "b")).eval() for keys in (config(), config(scales=[64])))
    pyramid.load_state_dict(plain.state_dict())
    assert pyramid.input.fit(123, 45) == (123, 45)
    with torch.no_grad():
        torch.testing.assert_close(pyramid.predict(images).scores, plain.predict(images).scores)


def test_training_draws_a_scale_for_each_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    detector = build_detector(config(scales=[32, 64, 96], longest=100), ("a", "b"))
    images, targets = batch()
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

    def take_resumed(self) -> None: ...

    def regions(self):
        return iter(self.batches)


def test_statistics_are_those_of_a_loop() -> None:
    detector = build_detector(config(), ("a", "b", "never seen"))
    assert isinstance(detector, FastRCNN)
    images, targets = batch(80)
    assert images.proposals is not None
    stage = detector.stages()[0]
    assert isinstance(stage, DeltaStatistics)
    stage.run(detector, Regions((targets, images.proposals), (targets, images.proposals)))
    deltas: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for box in images.proposals.boxes[0]:
        overlap = box_iou(targets.boxes[0], box[None])[:, 0]
        if overlap.max() >= 0.5:
            label = int(overlap.argmax())
            deltas[label].append(CODER.encode(targets.boxes[0, label], box).double())
    for label, values in deltas.items():
        rows = torch.stack(values)
        torch.testing.assert_close(detector.head.delta_mean[label].double(), rows.mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(detector.head.delta_std[label].double(), rows.std(0, False), atol=1e-4, rtol=1e-4)
    assert detector.head.delta_mean[2].tolist() == [0] * 4
    assert detector.head.delta_std[2].tolist() == [1] * 4


def test_statistics_leave_out_ignored_objects() -> None:
    images, targets = batch(80)
    assert images.proposals is not None
    ignore = torch.tensor([[False, True], [False, False]])
    # as if it were not there; its proposals overlap the other object by less than they need to be that one's
    alone = Targets.pad([(targets.boxes[row, :1], targets.labels[row, :1], ignore[row, :1]) for row in range(2)])
    heads = []
    for objects in (replace(targets, ignore=ignore), alone):
        detector = build_detector(config(), ("a", "b"))
        stage = detector.stages()[0]
        stage.run(detector, Regions((objects, images.proposals)))
        heads.append(detector.head)
    assert torch.equal(heads[0].delta_mean, heads[1].delta_mean)
    assert torch.equal(heads[0].delta_std, heads[1].delta_std)
    assert heads[0].delta_mean[0].all()
    assert heads[0].delta_mean[1].tolist() == [0] * 4
    assert heads[0].delta_std[1].tolist() == [1] * 4


def test_normalised_deltas_are_decoded_again() -> None:
    detector = build_detector(config(), ("a", "b"))
    assert isinstance(detector, FastRCNN)
    detector.head.delta_mean.normal_()
    detector.head.delta_std.uniform_(0.5, 2)
    images, targets = batch()
    assert images.proposals is not None
    regions, label = images.proposals.boxes[:1, :20], torch.tensor([[0, 1] * 10])
    truth = targets.boxes[:1, [0, 1] * 10]
    learnt = detector.head.normalise(CODER.encode(truth, regions), label)
    boxes = detector.head.decode(learnt.unsqueeze(2).expand(-1, -1, 2, -1), regions)
    own = boxes[0, torch.arange(20), label[0]]
    torch.testing.assert_close(own, truth[0], atol=1e-3, rtol=1e-4)


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
    image_files = tmp_path / "toys" / "JPEGImages" / "test*.jpg"
    assert cli.main(["detect", "run/best.pt", str(image_files), "--score", "0.01", "--out", "found", "--json"]) in (
        0,
        None,
    )
    check_file(tmp_path / "found" / "detections.json", "run/best.pt", score=0.01)


def check_file(path: Path, checkpoint: str, score: float) -> None:
    """A file of detections of the toys' test images has what the loaded detector finds, image by image."""
    images = json.loads(path.read_text())["images"]
    assert [Path(entry["file"]).name for entry in images] == [f"test{number:03}.jpg" for number in range(9)]
    found = detkit.load(checkpoint, device="cpu").detect([entry["file"] for entry in images], score=score)
    for entry, one in zip(images, found, strict=True):
        boxes, scores, labels = one.image(0)
        assert len(labels) > 5
        assert [own["class"] for own in entry["detections"]] == [TOYS[label] for label in labels.tolist()]
        assert [own["score"] for own in entry["detections"]] == pytest.approx(scores.tolist(), abs=1e-4)
        listed = torch.tensor([own["box"] for own in entry["detections"]])
        torch.testing.assert_close(listed, boxes, atol=0.01, rtol=0)
