"""Every detector by the rules of a GPU, where there is none: see tests/pretend.py."""

import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import detkit.engine.session
from detkit.checkpoints import checkpoint
from detkit.config import DetectConfig, TrainConfig
from detkit.engine.ema import ModelEMA
from detkit.engine.meter import Meter
from detkit.engine.optimizer import build_optimizer
from detkit.inference.evaluate import detect_batch
from detkit.runtime.device import images_to_device, to_device
from tests import zoo
from tests.pretend import GPU, PretendGPU, PretendTensor
from tests.toys.fixtures import *  # noqa: F403
from tests.toys.fixtures import Train

# Where the host waits in a training step. Of `rounds` how often depends on the data: greedy matching and NMS end early.
ROUNDS = {"matching.py:_bipartite", "nms.py:_settle"}
NMS = {
    "candidates.py:candidates": 1,
    "candidates.py:at": 1,
    "nms.py:_greedy": 1,
    "nms.py:_kept": 2,
    "nms.py:_best": 2,
    "sorting.py:ranked_rows": 4,
}
TRAINING = {
    "fast_rcnn": {},
    "faster_rcnn": NMS,  # of the RPN's proposals
    "mask_rcnn": NMS,  # of the RPN's proposals
    "rcnn": {},
    "retinanet": {},
    "rfcn": NMS,
    "sppnet": {"scales.py:rescale": 1},  # the canvas of each scale, of which there is one here
    "ssd": {},
    "yolov1": {},
    "yolov2": {},
    "yolov3": {},
}


@pytest.fixture(autouse=True)
def _no_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad())  # which wraps no subclass


def fixed(syncs: Counter[str]) -> dict[str, int]:
    return {place: count for place, count in syncs.items() if place not in ROUNDS}


def test_operands_on_two_devices_are_an_error_and_waiting_is_counted() -> None:
    here = torch.ones(3)
    with PretendGPU() as gpu:
        there = here.to(GPU)
        assert there.device == GPU
        assert isinstance(there * 2, PretendTensor)
        with pytest.raises(RuntimeError, match="two devices"):
            there + here
        assert isinstance(there + here[0], PretendTensor)  # a number is a number
        there[:2] = 0
        made = torch.tensor([1.0, 2.0], device=GPU), torch.arange(3, device=GPU), torch.zeros(3, device=GPU)
        assert all(isinstance(tensor, PretendTensor) for tensor in made)
        assert not gpu.syncs
        there[there > 0]
        there.nonzero()
        assert there.sum() == 1
        assert there.tolist() == [0, 0, 1]
        assert sum(gpu.syncs.values()) == 4
    assert here.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_step(name: str) -> None:
    """Forward, backward, clipping, optimiser, average, meter: all on the GPU, no host sync but those known."""
    detector = zoo.build(name)
    images, targets = zoo.sample_images(detector), zoo.some_objects(detector)
    with PretendGPU() as gpu:
        to_device(detector, GPU, channels_last=True)
        optimizer = build_optimizer(detector.train(), TrainConfig(iterations=10, lr=1e-4))
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        average, meter = ModelEMA(detector, 0.9), Meter(GPU)
        for iteration in range(2):
            there, objects = images_to_device(images, GPU, True), targets.to(GPU)
            gpu.syncs.clear()
            parts = detector(there, objects)
            sum(parts.values()).backward()
            meter.add(iteration, [parts])
            nn.utils.clip_grad_norm_(trained, 10.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update(iteration)
        assert fixed(gpu.syncs) == TRAINING[name]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", TRAINING)
def test_a_training_step_on_cuda_waits_where_the_pretended_one_does(name: str) -> None:
    device = torch.device("cuda")
    detector = zoo.build(name)
    to_device(detector, device, channels_last=True)
    images, targets = images_to_device(zoo.sample_images(detector), device, True), zoo.some_objects(detector).to(device)
    optimizer = build_optimizer(detector.train(), TrainConfig(iterations=10, lr=1e-4))
    files: set[str] = set()
    for _ in range(2):  # the first makes the optimiser's state
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                torch.stack([*detector(images, targets).values()]).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        files = {Path(warning.filename).name for warning in caught if "synchroniz" in str(warning.message)}
    known = {place.partition(":")[0] for place in (*ROUNDS, *TRAINING[name])}
    assert files <= known


@pytest.mark.parametrize("name", zoo.MODELS)
def test_detecting(name: str) -> None:
    """As many host syncs for four images as for two, and what the CPU finds."""
    detector = zoo.build(name).eval()
    config = SimpleNamespace(train=TrainConfig(iterations=1, amp="none"), detect=DetectConfig(score_threshold=0.01))
    batches = [zoo.sample_images(detector, count) for count in (2, 4)]
    with torch.no_grad():
        found = [detect_batch(detector, images, config, torch.device("cpu")) for images in batches]  # pyright: ignore
        with PretendGPU() as gpu:
            to_device(detector, GPU, channels_last=True)
            counts = []
            for images, expected in zip(batches, found):
                gpu.syncs.clear()
                detections = detect_batch(detector, images, config, GPU)  # pyright: ignore
                counts.append(fixed(gpu.syncs))
                for field in ("boxes", "scores", "labels"):
                    torch.testing.assert_close(getattr(detections, field).cpu(), getattr(expected, field))
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) <= 30


def test_a_run_its_checkpoints_and_its_resume(train: Train, trained: Path, tmp_path: Path, monkeypatch) -> None:
    """A training with its evaluations: weights are those of the CPU, and files hold tensors that any machine reads."""
    monkeypatch.setattr(detkit.engine.session, "choose_device", lambda name: GPU)
    keys = ("train.ema=0.9", "model.dropout=0.2", "model.norm=true", "train.amp=none")
    with PretendGPU():
        assert train(*keys, "--out", tmp_path / "run") == 0
        (tmp_path / "run" / "metrics.json").unlink()
        assert train("--resume", tmp_path / "run") == 0
    ours, theirs = (checkpoint.load(folder / "best.pt") for folder in (tmp_path / "run", trained))
    assert ours["iteration"] == theirs["iteration"]
    for name, tensor in theirs["model"].items():
        assert type(ours["model"][name]) is torch.Tensor
        torch.testing.assert_close(ours["model"][name], tensor)
