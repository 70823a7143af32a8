"""Unknown names, and parts that do not fit: one line, which names what would."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import detkit
from detkit.backbones import BACKBONES, Backbone, FeatureInfo
from detkit.checkpoints import checkpoint
from detkit.config import Config, DataConfig, TrainConfig
from detkit.errors import UserError
from detkit.experiment import load_config
from tests import zoo


class Bare(Backbone):
    """What a backbone must have and no more: neither stages nor a map that is called c4."""

    info = (FeatureInfo("low", 4, 8), FeatureInfo("high", 4, 16))

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 4, 8, 8), nn.Conv2d(4, 4, 2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.low(x)
        return {"low": low, "high": self.high(low)}


class BareRegion(Bare):
    region: ClassVar[str] = "high"
    width: ClassVar[int] = 16


@pytest.fixture(autouse=True)
def bare() -> Iterator[None]:
    before = dict(BACKBONES._entries)
    BACKBONES.register("bare")(Bare)
    BACKBONES.register("bare_region")(BareRegion)
    yield
    BACKBONES._entries.clear()
    BACKBONES._entries.update(before)


def line_of(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("fast_rcnn", "model.backbone: Bare gives the maps low, high, not 'c4'"),
        ("rcnn", "model.backbone: Bare gives the maps low, high, not 'c4'"),
        ("sppnet", "model.backbone: Bare gives the maps low, high, not 'c4'"),
        ("faster_rcnn", "bare gives the maps low, high, not 'c4'"),
    ],
)
def test_a_backbone_without_the_map_of_region_heads(model: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        zoo.build(model, "bare")
    assert words in line_of(error)


@pytest.mark.parametrize("model", zoo.POOLING)
def test_a_backbone_without_tail_or_stages(model: str) -> None:
    """Two new layers stand for the tail; without stages nothing can be frozen."""
    detector: Any = zoo.build(model, "bare_region")
    assert sum(isinstance(layer, nn.Linear) for layer in detector.head.tail) == 2
    if model == "rcnn":
        return
    with pytest.raises(UserError) as error:
        zoo.build(model, "bare_region", freeze_stages=2)
    assert "BareRegion has no stages that could be frozen; train all of it: model.freeze_stages=0" in line_of(error)


@pytest.mark.parametrize(
    ("model", "keys", "words"),
    [
        ("yolov1", {"head": "conv", "grid": 7, "size": 100, "convolutions": []}, "lead to a map of 6 x 6"),
        ("ssd", {"features": ["c4"]}, "bare_region gives the maps low, high, not 'c4'"),
        ("faster_rcnn", {"neck": "fpn", "features": ["c4"]}, "bare_region gives the maps low, high, not 'c4'"),
        ("yolov1", {"feature": "c5"}, "model.feature: bare_region gives the maps low, high, not 'c5'"),
    ],
)
def test_a_head_that_does_not_fit(model: str, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        zoo.build(model, "bare_region", **keys)
    assert words in line_of(error)


def test_a_size_that_the_stride_does_not_divide() -> None:
    """YOLOv1's cells share the image out, whatever its size."""
    detector: Any = zoo.build("yolov1", "tiny", size=100, head="conv")
    found = detector.eval().predict(zoo.sample_images(detector))
    assert found.boxes.shape[1] == detector.grid**2 * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {name: sdd}", "unknown model 'sdd'; did you mean 'ssd'?"),
        ("model: {name: zzz}", "unknown model 'zzz'; known: fast_rcnn, faster_rcnn"),
        ("model: {nam: ssd}", "model.name is missing; an example: model: {name: ssd}"),
    ],
)
def test_unknown_models(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path)
    assert words in line_of(error)
    assert str(path) in line_of(error)


@pytest.mark.parametrize("model", zoo.MODELS)
def test_unknown_backbones(model: str) -> None:
    with pytest.raises(UserError) as error:
        detkit.create_model(model, backbone="resnet5", classes=["a"])
    assert "unknown backbone 'resnet5'; did you mean 'resnet50'?" in line_of(error)


@pytest.mark.parametrize(
    ("backbone", "file_of", "words"),
    [
        ("squeezenet1_1", "squeezenet1_0", "; the file belongs to squeezenet1_0"),
        ("mobilenet_v2", "tiny", "; the file belongs to tiny"),
        ("resnet18", None, "; the file belongs to no backbone of detkit's"),
    ],
)
def test_weights_of_another_backbone(backbone: str, file_of: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = {"some": torch.zeros(2)} if file_of is None else BACKBONES.get(file_of)().state_dict()
    torch.save(state, path)
    with pytest.raises(UserError) as error:
        detkit.create_model("ssd", backbone={"name": backbone, "weights": str(path)}, classes=["a"])
    assert line_of(error).endswith(words)


def test_weights_of_another_detector(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    ssd = zoo.build("ssd")
    checkpoint.save(path, ssd, Config(ssd.config, DataConfig(root=""), TrainConfig(iterations=1)))
    with pytest.raises(UserError) as error:
        checkpoint.start_from(zoo.build("yolov1"), path)
    assert line_of(error).endswith("; they fit model.name=ssd model.backbone.name=tiny")
