"""timm's networks as backbones, where timm is installed."""

import sys

import pytest
import torch

from detkit.backbones import create_backbone
from detkit.config import BackboneConfig
from detkit.errors import UserError


def test_without_timm_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^model\.backbone: timm/resnet18 needs timm; pip install timm$"):
        create_backbone(BackboneConfig("timm/resnet18"))


# flat, with layers under other names, with channels last, with blocks that stay behind a truncated network
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"])
@torch.no_grad()
def test_a_network_of_timm_is_a_backbone(name):
    pytest.importorskip("timm")
    backbone = create_backbone(BackboneConfig(f"timm/{name}")).eval()
    x = torch.randn(1, 3, 224, 224)
    maps = backbone(x)
    assert list(maps) == [info.name for info in backbone.info]
    for info in backbone.info:
        assert maps[info.name].shape == (1, info.channels, 224 // info.stride, 224 // info.stride)
    tail = backbone.tail(7)
    assert backbone.region == "c4" == backbone.info[-1].name
    assert tail(torch.zeros(2, backbone.info[-1].channels, 7, 7)).shape == (2, 1024)
    for key, each in backbone(x).items():
        torch.testing.assert_close(each, maps[key])
    grouped = [id(p) for group in backbone.layer_groups() for p in group.parameters()]
    assert grouped == [id(p) for p in backbone.parameters()]
    with torch.enable_grad():
        torch.autograd.grad(backbone(x)["c4"].sum(), list(backbone.parameters()))


def test_what_timm_has_not_is_one_line():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"timm has no network 'resnet81'; did you mean 'timm/resnet"):
        create_backbone(BackboneConfig("timm/resnet81"))
    with pytest.raises(UserError, match=r"timm/vit_tiny_patch16_224 has no stages"):
        create_backbone(BackboneConfig("timm/vit_tiny_patch16_224")).layer_groups()
