"""R-CNN: the crops' way through the network, chunks, and the stages from proposals to detections."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import adaptive_max_pool2d
from torchvision.models import alexnet

from detkit import cli
from detkit.checkpoints import checkpoint
from detkit.config import BackboneConfig
from detkit.errors import UserError
from detkit.models import build_detector
from detkit.models.rcnn import RCNN, RCNNConfig
from detkit.models.region_features import adaptive_pool
from detkit.ops import crop_warp
from tests.builders import batch_with_proposals, few_regions
from tests.models.checks import check_file, check_unfitted
from tests.runtime.test_distributed import torchrun
from tests.toys.toy import draw_toys


def config(**keys) -> RCNNConfig:
    small = RCNNConfig(backbone=BackboneConfig("tiny"), crop=32, context=4, pool_size=2, batch_size_per_image=8)
    return replace(small, **keys)


def test_it_learns_and_detects() -> None:
    detector = build_detector(config(), ("a", "b"))
    images, targets = batch_with_proposals()
    losses = detector(images, targets)
    assert set(losses) == {"classification"}
    losses["classification"].backward()
    fitted = {"head.svm.weight", "head.svm.bias", "head.regressor.weight", "head.regressor.bias"}
    for name, parameter in detector.named_parameters():
        assert (parameter.grad is None) == (name in fitted), name
    check_unfitted(detector, images)


def test_alexnets_features_are_those_of_the_imagenet_network() -> None:
    """The adaptive pool is pool5 at 227 pixels: what the tail reads is what it read on ImageNet."""
    detector = build_detector(RCNNConfig(), ("a", "b")).eval()
    assert isinstance(detector, RCNN)
    images, _ = batch_with_proposals()
    assert images.proposals is not None
    boxes = images.proposals.boxes[:, :2]
    network = alexnet(weights=None)
    state = {f"features.{name}": value for name, value in detector.backbone.features.state_dict().items()}  # pyright: ignore
    network.load_state_dict(state, strict=False)
    mean = [255 * value for value in detector.config.mean]
    crops = crop_warp(images.pixels, boxes, 227, 16, mean, images.sizes).flatten(0, 1)
    with torch.no_grad():
        expected = network.features((crops - detector._shift) * detector._scale)
        pooled = detector.features.pool(detector.features.prepare(images, detector), boxes)
        torch.testing.assert_close(pooled.flatten(0, 1), expected)
    assert detector.head.svm.in_features == 4096
    assert detector.head.regressor.in_features == 9216


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build_detector(config(), ("a", "b")).eval()
    assert isinstance(detector, RCNN)
    images, _ = batch_with_proposals()
    with torch.no_grad():
        at_once = detector.predict(images)
        monkeypatch.setattr(detector.features, "chunk_size", lambda _: 7)
        in_chunks = detector.predict(images)
    torch.testing.assert_close(in_chunks.scores, at_once.scores)
    torch.testing.assert_close(in_chunks.boxes, at_once.boxes)


def test_regions_at_once_are_bounded() -> None:
    """2000 regions of one image, and of many, are 32 MiB of crops at once."""
    detector = build_detector(config(crop=227), ("a", "b"))
    assert isinstance(detector, RCNN)
    for images in (1, 8):
        count = detector.features.chunk_size(images)
        assert count is not None
        assert count * images * 3 * 227 * 227 * 4 <= 32 << 20
    assert detector.features.chunk_size(10_000) == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scoring": "hinge"}, "model.scoring: 'hinge' is not one of svm, softmax"),
        ({"context": 16}, "model.context: 16 leaves nothing of a crop of 32 pixels"),
        ({"svm_c": 0.0}, r"model\.svm_c: 0\.0 is not in \(0, inf\)"),
        ({"ridge_match_iou": 1.5}, r"model\.ridge_match_iou: 1\.5 is not in \(0, 1\]"),
        ({"fit_images": -1}, r"model\.fit_images: -1 is not in \[0, inf\)"),
        ({"pool_size": 0}, r"model\.pool_size: 0 is not in \[1, 100\]"),
    ],
)
def test_values_are_checked(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**keys)


RECIPE = """
model: {name: rcnn, backbone: {name: tiny}, crop: 16, context: 2, pool_size: 2, batch_size_per_image: 4}
data:
  root: ROOT/toys
  train: [train]
  val: [val]
  test: [test]
  proposals: [ROOT/train.npz, ROOT/val.npz, ROOT/test.npz]
  augment: [HorizontalFlip]
train: {iterations: 3, batch: 4, workers: 0, ema: 0.5}
detect: {score_threshold: -2.0}
evaluate: {batch: 4}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of toys, their proposals and a recipe."""
    root = tmp_path_factory.mktemp("rcnn")
    draw_toys(root / "toys")
    (root / "rcnn.yaml").write_text(RECIPE.replace("ROOT", str(root)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("detkit.proposals.selective_search.selective_search", few_regions)
        for split in ("train", "val", "test"):
            options = ["--split", split, "--out", f"{split}.npz", "--workers", "1"]
            assert cli.main(["proposals", "make", "rcnn.yaml", *options]) in (0, None)
    return root


@pytest.mark.parametrize(
    ("call", "stage", "done"),
    [(3, "svm", 0), (9, "svm", 0), (15, "svm", 12), (21, "box_regression", 0), (27, "box_regression", 12)],
    ids=["norms", "positives", "hard negatives", "norms before the tail", "pairs"],
)
def test_an_interrupted_pass_goes_on(
    folder: Path, call: int, stage: str, done: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Stopped in the middle of each pass over the 24 images, in 6 batches: the same weights in the end."""
    monkeypatch.chdir(folder)
    if not (folder / "whole").exists():
        assert cli.main(["train", "rcnn.yaml", "--out", "whole"]) in (0, None)
    extract, calls = RCNN.extract_features, 0

    def interrupt(self: RCNN, *arguments, **options):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return extract(self, *arguments, **options)

    monkeypatch.setattr(RCNN, "extract_features", interrupt)
    cut = f"cut{call}"
    assert cli.main(["train", "rcnn.yaml", "--out", cut]) == 128 + signal.SIGTERM
    assert f"SIGTERM: {cut}/last.pt saved after image" in capsys.readouterr().err
    saved = checkpoint.load(Path(cut) / "last.pt")["training"]
    assert (saved["stage"], saved["done"]) == (stage, done)
    # features before the tail, 384 float32, and 4 deltas are on disk beside last.pt
    on_disk = sum(path.stat().st_size for path in Path(cut).glob("pairs/*"))
    assert on_disk == 4 * 388 * (int(saved["counts"].sum()) if (stage, done) == ("box_regression", 12) else 0)
    assert cli.main(["train", "--resume", cut]) in (0, None)
    whole, resumed = (checkpoint.load(Path(name) / "best.pt")["model"] for name in ("whole", cut))
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name
    assert bool(whole["head.svm_fitted"])
    assert bool(whole["head.regression_fitted"])


@pytest.fixture
def stopped(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Return a copy of a run that was stopped in the pass that a call of `extract_features` belongs to."""

    def stop(call: int) -> Path:
        run = folder / f"stopped{call}"
        if not run.exists():
            extract, calls = RCNN.extract_features, iter(range(1, 99))

            def interrupt(self: RCNN, *arguments, **options):
                if next(calls) == call:
                    os.kill(os.getpid(), signal.SIGTERM)
                return extract(self, *arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(RCNN, "extract_features", interrupt)
                assert cli.main(["train", str(folder / "rcnn.yaml"), "--out", str(run)]) == 128 + signal.SIGTERM
        return Path(shutil.copytree(run, tmp_path / "run"))

    return stop


def test_two_processes_fit_what_one_does(stopped: Callable[[int], Path], tmp_path: Path) -> None:
    """They share the images of each pass; from where one of them was stopped, to the same bits."""
    one = stopped(3)
    two = Path(shutil.copytree(one, tmp_path / "two"))
    assert cli.main(["train", "--resume", str(one)]) in (0, None)
    process = torchrun("--resume", two)
    _, said = process.communicate()
    assert process.returncode == 0, said
    expected, found = (checkpoint.load(run / "best.pt")["model"] for run in (one, two))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert bool(found["head.regression_fitted"])
    assert not (two / "pairs").exists()


SHAPED = [
    (15, {"done": 25}, "done is not a number of images up to 24"),
    (15, {"done": "12"}, "done is not a number of images up to 24"),
    (15, {"weight": None}, "weight is not float32 numbers of shape (2, 256) from -inf to inf"),
    (15, {"weight": torch.zeros(3, 256)}, "weight is not float32 numbers of shape (2, 256) from -inf to inf"),
    (15, {"weight": torch.zeros(2, 256).double()}, "weight is not float32 numbers of shape (2, 256) from -inf to inf"),
    (15, {"features": torch.zeros(9, 256)}, "labels is not int8 numbers of shape (windows, 2) from -1 to 1"),
    (15, {"features": torch.zeros(9, 255)}, "features is not float32 numbers of shape (windows, 256) from -inf to inf"),
    (15, {"offset": torch.zeros(())}, "offset is not float32 numbers of shape (2) from -inf to inf"),
    (15, {"new": torch.tensor([0, -1])}, "new is not int64 numbers of shape (2) from 0 to inf"),
    (15, {"scale": torch.zeros(())}, "scale is not float32 numbers of shape () from 1e-30 to inf"),
    (27, {"counts": torch.tensor([2, -1])}, "counts is not int64 numbers of shape (2) from 0 to inf"),
    (27, {"counts": torch.tensor([2])}, "counts is not int64 numbers of shape (2) from 0 to inf"),
    (27, {"scale": None}, "scale is not float32 numbers of shape () from 1e-30 to inf"),
]


@pytest.mark.parametrize(("call", "change", "message"), SHAPED)
def test_a_stages_state_is_looked_at(
    call: int, change: dict, message: str, stopped: Callable[[int], Path], capsys: pytest.CaptureFixture
) -> None:
    """Each fault is one line, and nothing has changed."""
    run = stopped(call)
    content = torch.load(run / "last.pt", weights_only=True)
    content["training"] |= change
    torch.save(content, run / "last.pt")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert cli.run_command("train", ["--resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {run / 'last.pt'}: damaged checkpoint: training.{message}")
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_what_is_trained_detects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("detkit.proposals.selective_search.selective_search", few_regions)
    if not (folder / "whole").exists():
        assert cli.main(["train", "rcnn.yaml", "--out", "whole"]) in (0, None)
    arguments = ["detect", "whole/best.pt", "toys/JPEGImages/test*.jpg", "--score", "-9", "--out", "found", "--json"]
    assert cli.main(arguments) in (0, None)
    check_file(folder / "found" / "detections.json", "whole/best.pt", score=-9)


@pytest.mark.parametrize(("side", "size"), [(13, 6), (12, 4), (7, 7), (5, 1), (8, 3), (14, 6), (4, 6), (1, 3)])
def test_pooling_is_adaptive_pooling(side: int, size: int) -> None:
    x = torch.randn(2, 3, side, side)
    assert torch.equal(adaptive_pool(x, size), adaptive_max_pool2d(x, size))
