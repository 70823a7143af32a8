"""Train once, feed every head: a detector takes its backbone from a checkpoint of any other."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import detkit
from detkit.backbones import Backbone, create_backbone, weights
from detkit.checkpoints import checkpoint
from detkit.config import BackboneConfig, Config, TrainConfig
from detkit.engine.optimizer import build_optimizer
from detkit.errors import UserError
from detkit.models import Detector
from tests import zoo

# region heads have new layers, those from the middle of a block on, those of the network behind a map (by --full)
BACKBONES = ("tiny", "mobilenet_v2", "resnet18")
PYRAMID = {"neck": "fpn", "channels": 16}  # and so layers of its own in the region head
MODELS = (*zoo.MODELS, "faster_rcnn+fpn")


@pytest.fixture(autouse=True, scope="module")
def _no_values() -> Iterator[None]:
    """Let new weights be 0: their values take most of the time, and mean nothing here."""
    names = ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor.data.zero_())
        yield


def build(model: str, backbone: str, weights: Path | None = None) -> Detector:
    name, _, neck = model.partition("+")
    return zoo.build(name, backbone, weights, **(PYRAMID if neck else {}))


def pretrained(detector: Detector, whole: dict[str, Tensor]) -> set[str]:
    """Which tensors of `whole`, a backbone's, a detector has, wherever it keeps them; no two are alike there."""
    names = {(tensor.shape, tensor.flatten()[0].item()): name for name, tensor in whole.items()}
    assert len(names) == len(whole)
    own = {names.get((tensor.shape, tensor.flatten()[0].item())): tensor for tensor in detector.state_dict().values()}
    return {name for name, tensor in own.items() if name is not None and torch.equal(tensor, whole[name])}


def values(backbone: str) -> dict[str, Tensor]:
    """A state of a whole backbone of which no two tensors are alike."""
    network = create_backbone(BackboneConfig(backbone), tail=True)
    return {
        name: torch.rand(tensor.shape) + 0.5 if tensor.is_floating_point() else torch.tensor(1000 + number)
        for number, (name, tensor) in enumerate(network.state_dict().items())
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "shared" in metafunc.fixturenames:
        metafunc.parametrize("shared", BACKBONES if metafunc.config.getoption("--full") else BACKBONES[:2])


def test_every_detector_feeds_every_other(shared: str, tmp_path: Path) -> None:
    torch.save(whole := values(shared), tmp_path / "whole.pth")
    room = {}
    for model in MODELS:
        detector = build(model, shared, tmp_path / "whole.pth")
        room[model] = pretrained(detector, whole)
        assert {name for name in whole if name in detector.backbone.state_dict()} <= room[model]
        checkpoint.save(tmp_path / f"{model}.pt", detector, Config(model=detector.config))
    if shared == "tiny":  # its region map is c3; tails are new
        kept = {name for name in whole if not name.startswith(("stage4.", "stage5."))}
        assert all(room[model] == kept for model in ("rcnn", "fast_rcnn", "faster_rcnn", "sppnet"))
        assert all(room[model] == set(whole) for model in ("ssd", "yolov1", "torchvision_ssd", "faster_rcnn+fpn"))
    else:  # nothing is left out but what lies behind SPPNet's map
        assert [model for model in MODELS if room[model] != set(whole)] == ["sppnet"]
    for source in MODELS:
        for target in MODELS:
            detector = build(target, shared, tmp_path / f"{source}.pt")
            found = pretrained(detector, whole)
            assert found == room[source] & room[target], (source, target, sorted(found ^ (room[source] & room[target])))


@pytest.mark.parametrize("name", detkit.list_backbones())
def test_every_tail_of_own_layers_is_known(name: str) -> None:
    with torch.device("meta"):
        backbone = create_backbone(BackboneConfig(name), tail=True)
        names = weights._tail_names(backbone)
        whole = set(backbone.state_dict())
        behind = type(backbone).tail is not Backbone.tail and backbone.region != backbone.info[-1].name
        own = behind or backbone.tail_size is not None  # else tails are new layers
        tail = backbone.tail(backbone.tail_size or 7)
    assert set(names) == (set(tail.state_dict()) if own else set())
    assert not set(names.values()) & set(backbone.state_dict())
    if own:  # nothing is left out
        assert set(names.values()) | set(backbone.state_dict()) == whole


def test_what_was_taken_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = build("fast_rcnn", "resnet18")
    checkpoint.save(tmp_path / "best.pt", detector, Config(model=detector.config))
    create_backbone(BackboneConfig("resnet18", str(tmp_path / "best.pt")))
    assert f"backbone weights: 100 of 100 tensors from {tmp_path / 'best.pt'}\n" in capsys.readouterr().err
    # layers behind a pyramid are no part of a backbone
    detector = build("faster_rcnn+fpn", "resnet18")
    checkpoint.save(tmp_path / "fpn.pt", detector, Config(model=detector.config))
    create_backbone(BackboneConfig("resnet18", str(tmp_path / "fpn.pt")))
    assert f"100 of 100 tensors from {tmp_path / 'fpn.pt'}\n" in capsys.readouterr().err
    with pytest.raises(
        UserError, match=r"fpn\.pt: layer1\.0\.conv1\.weight has shape .* the file belongs to resnet18$"
    ):
        create_backbone(BackboneConfig("resnet50", str(tmp_path / "fpn.pt")))


@pytest.mark.parametrize(
    ("model", "backbone", "own_tail"),
    [
        ("fast_rcnn", "resnet18", True),
        ("rcnn", "mobilenet_v2", True),
        ("faster_rcnn", "alexnet", True),
        ("faster_rcnn", "tiny", False),
        ("faster_rcnn+fpn", "resnet18", False),
        ("sppnet", "alexnet", False),
        ("ssd", "resnet18", False),
        ("torchvision_ssd", "resnet18", False),
    ],
)
def test_the_rate_of_the_backbone_is_that_of_all_its_layers(model: str, backbone: str, own_tail: bool) -> None:
    detector = build(model, backbone)
    optimizer = build_optimizer(detector, TrainConfig(iterations=1, backbone_lr=0.5))
    slow = {id(p) for group in optimizer.param_groups if group["scale"] == 0.5 for p in group["params"]}
    names = {name for name, parameter in detector.named_parameters() if id(parameter) in slow}
    prefix = "ssd.backbone.backbone." if model == "torchvision_ssd" else "backbone."
    expected = (prefix, "head.tail.") if own_tail else (prefix,)
    wanted = {n for n, p in detector.named_parameters() if n.startswith(expected) and p.requires_grad}
    assert names == wanted
    assert names
