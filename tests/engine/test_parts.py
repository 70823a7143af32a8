"""Learning rate, parameter groups, average, devices."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from detkit.config import BackboneConfig, TrainConfig
from detkit.engine.ema import ModelEMA
from detkit.engine.optimizer import build_optimizer, kinds, learning_rate, set_rate
from detkit.errors import UserError
from detkit.experiment import load_config
from detkit.models import build_detector
from detkit.models.ssd import SSDConfig
from detkit.models.torchvision_ssd import TorchvisionSSDConfig
from detkit.runtime.device import autocast, choose_device, images_to_device, resolve_amp, to_device
from detkit.runtime.memory import tune
from detkit.structures import Images
from tests.toys.toy import Toy, ToyConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def test_steps() -> None:
    config = TrainConfig(iterations=120000, lr=1e-3, schedule="steps", milestones=[80000, 100000], gamma=0.1)
    rates = [learning_rate(config, at) for at in (0, 79999, 80000, 99999, 100000, 119999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_cosine_after_warmup() -> None:
    config = TrainConfig(iterations=110, lr=2.0, schedule="cosine", warmup=10)
    rates = [learning_rate(config, at) for at in range(110)]
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])
    assert rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[109] == pytest.approx(1 + math.cos(math.pi * 0.99))


def test_warmup_from_another_rate() -> None:
    config = TrainConfig(iterations=9, lr=0.01, schedule="steps", milestones=[7], warmup=3, warmup_lr=0.001)
    assert [learning_rate(config, i) for i in (0, 2, 3, 6, 7)] == pytest.approx([0.004, 0.01, 0.01, 0.01, 0.001])


def test_warmup_longer_than_the_run() -> None:
    config = TrainConfig(iterations=5, lr=1.0, warmup=10)
    assert [learning_rate(config, at) for at in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize("bias_decay", [0.0, 0.2])
def test_groups_of_the_caffe_recipe(bias_decay: float) -> None:
    detector = Toy(ToyConfig(norm=True), ("a", "b"))
    detector.head[0].weight.requires_grad_(False)
    rates = {"bias_lr": 2, "backbone_lr": 0.5, "class_lr": 10}
    config = TrainConfig(iterations=1, lr=0.1, weight_decay=0.3, bias_decay=bias_decay, **rates)
    optimizer = build_optimizer(detector, config)
    set_rate(optimizer, 0.1)
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        "backbone.0.weight": (0.05, 0.3),
        "backbone.0.bias": (0.1, bias_decay),
        "backbone.1.weight": (0.05, 0.0),
        "backbone.1.bias": (0.05, 0.0),
        "head.0.bias": (0.2, bias_decay),
        "out.weight": (1.0, 0.3),
        "out.bias": (2.0, bias_decay),
    }


@pytest.mark.parametrize(
    ("name", "classifier"),
    [("rcnn_alexnet", (10, 20)), ("rcnn_vgg16", (10, 20)), ("sppnet_alexnet", (1, 2)), ("sppnet_vgg16", (1, 2))],
)
def test_the_published_recipes_of_the_svm_line(name: str, classifier: tuple[int, int]) -> None:
    """Biases learn twice as fast, R-CNN's new classifier ten times; difficult objects are kept, as all regions are."""
    config = load_config(CONFIGS / "voc" / f"{name}.yaml", ["data.root=somewhere", "model.backbone.weights=null"])
    with torch.device("meta"):
        detector = build_detector(config.model, ("a", "b"))
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    groups = build_optimizer(detector, config.train).param_groups
    factors = {names[id(parameter)]: group["scale"] for group in groups for parameter in group["params"]}
    assert (factors.pop("head.classifier.weight"), factors.pop("head.classifier.bias")) == classifier
    assert len(factors) >= 4
    assert all(factor == (2 if name.endswith("bias") else 1) for name, factor in factors.items())
    assert config.data.difficult
    assert config.data.proposal_count is None


def test_every_parameter_of_ssd_is_in_one_group() -> None:
    config = SSDConfig(backbone=BackboneConfig("tiny"), size=96, l2norm=["c3"], extras=[], steps=None)
    config.min_sizes, config.max_sizes, config.aspect_ratios = [10, 20, 30], [20, 30, 40], [[2]] * 3
    detector = build_detector(config, ("a",))
    groups = list(kinds(detector))
    assert sorted(name for name, _, _ in groups) == sorted(name for name, _ in detector.named_parameters())
    by_name = {name: kind for name, kind, _ in groups}
    assert by_name["l2norm.c3.weight"] == "norm"
    assert by_name["head.classifiers.0.bias"] == "bias"


def test_shared_parameters_are_optimised_once() -> None:
    detector = Toy(ToyConfig(), ("a",))
    count = len(list(detector.parameters()))
    detector.again = detector.head
    optimizer = build_optimizer(detector, TrainConfig(iterations=1, backbone_lr=0.5))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == count


def test_the_backbone_has_its_rate_wherever_a_detector_keeps_it() -> None:
    config = TorchvisionSSDConfig(backbone=BackboneConfig("mobilenet_v2"), size=300)
    detector = build_detector(config, ("a",))
    optimizer = build_optimizer(detector, TrainConfig(iterations=1, backbone_lr=0.5))
    slow = {id(p) for group in optimizer.param_groups if group["scale"] == 0.5 for p in group["params"]}
    assert slow == {id(parameter) for parameter in detector.backbone.parameters()}


def test_adamw() -> None:
    optimizer = build_optimizer(Toy(ToyConfig(), ("a",)), TrainConfig(iterations=1, optimizer="adamw", momentum=0.85))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.85, 0.999)


def test_average_is_the_exponential_one() -> None:
    detector = nn.BatchNorm1d(2)
    average = ModelEMA(detector, 0.5)
    expected = detector.weight.detach().clone()
    for iteration in range(12):
        with torch.no_grad():
            detector.weight.normal_()
            detector.running_mean.fill_(iteration)
            detector.num_batches_tracked.add_(1)
        average.update(iteration)
        decay = min(0.5, (1 + iteration) / (10 + iteration))
        expected = decay * expected + (1 - decay) * detector.weight.detach()
    torch.testing.assert_close(average.detector.weight.data, expected)
    assert average.detector.num_batches_tracked == 12
    assert 9 < float(average.detector.running_mean[0]) < 11
    assert not average.detector.weight.requires_grad
    assert not average.detector.training


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout(channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    detector = Toy(ToyConfig(), ("a",))
    to_device(detector, torch.device("cpu"), channels_last)
    assert detector.head[0].weight.is_contiguous(memory_format=layout)
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    if not channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    sizes = torch.full((2, 2), 8)
    images = images_to_device(Images(pixels, sizes, sizes, ("a", "b")), torch.device("cpu"), channels_last)
    assert images.pixels.is_contiguous(memory_format=layout)


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="'gpu' is not one of auto, cpu, cuda"):
        choose_device("gpu")


def test_tune_can_be_repeated() -> None:
    tune()
    tune()


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({}, "none")]
)
def test_auto_is_bf16_where_the_processor_is_made_for_it(monkeypatch, capabilities: dict, expected: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    cpu = torch.device("cpu")
    assert resolve_amp(cpu, "auto") == expected
    assert resolve_amp(cpu, "none") == "none"
    assert resolve_amp(cpu, "fp16") == "fp16"
    with autocast(cpu, "auto"):
        assert torch.is_autocast_enabled("cpu") == (expected == "bf16")


def test_auto_on_an_old_torch(monkeypatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_amp(torch.device("cpu"), "auto") == "none"
