"""What every registered backbone promises."""

import pytest
import torch
from torch import nn

from detkit.backbones import Backbone, create_backbone, list_backbones
from detkit.backbones.zfnet import ResponseNorm
from detkit.config import BackboneConfig
from detkit.errors import UserError

NAMES = list_backbones()


def build(name: str, tail: bool = False) -> Backbone:
    return create_backbone(BackboneConfig(name), tail=tail).eval()


def shapes(backbone: Backbone, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """The maps' shapes, without computing them."""
    with torch.no_grad():
        return {name: tuple(x.shape) for name, x in backbone(torch.empty(1, 3, height, width, device="meta")).items()}


@pytest.mark.parametrize("name", NAMES)
def test_declared_features_are_those_of_a_forward(name):
    backbone = skeleton(name)
    strides = [info.stride for info in backbone.info]
    assert strides == sorted(strides)
    assert backbone.region in [info.name for info in backbone.info]
    height, width = 131, 165
    maps = shapes(backbone, height, width)
    # where the image is n strides larger the map is n cells larger, whatever the padding
    larger = shapes(backbone, height + 2 * strides[-1], width + strides[-1])
    assert list(maps) == [info.name for info in backbone.info]
    for info in backbone.info:
        batch, channels, rows, columns = maps[info.name]
        assert (batch, channels) == (1, info.channels)
        grown = (rows + 2 * strides[-1] // info.stride, columns + strides[-1] // info.stride)
        assert larger[info.name] == (1, info.channels, *grown)


class Mean(nn.AvgPool2d):
    """A pool's mean in place of its maximum: the mean of coordinates is that of the window's middle."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, count_include_pad=False)


def linearise(module: nn.Module) -> None:
    """Make a network sum what it sees at the middle of its kernels, with weights above 0."""
    for name, layer in module.named_children():
        if isinstance(layer, nn.MaxPool2d):
            setattr(module, name, Mean(layer))
        elif isinstance(layer, (nn.BatchNorm2d, nn.ReLU6, ResponseNorm)):
            setattr(module, name, nn.Identity())
        else:
            linearise(layer)
    if isinstance(module, nn.Conv2d):
        with torch.no_grad():
            module.weight.zero_()
            middle = [slice((side - 1) // 2, side // 2 + 1) for side in module.kernel_size]
            module.weight[:, :, middle[0], middle[1]] = 1 / module.weight.shape[1]
            if module.bias is not None:
                module.bias.zero_()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_cells_of_the_region_map_lie_where_the_backbone_says(name):
    """An image of each pixel's coordinate, so that each cell tells the coordinate of its middle."""
    backbone = build(name)
    backbone.cut(backbone.region)
    linearise(backbone.double())
    coordinates = (torch.arange(256).double() + 0.5).expand(1, 3, 96, 256)
    seen = [backbone(x)[backbone.region] for x in (coordinates, torch.ones_like(coordinates))]
    middles = (seen[0] / seen[1])[0, 0, 2]
    # no window of these cells sticks out of the image
    cells = torch.arange(3, len(middles) - 4)
    assert len(cells) > 2
    expected = backbone.region_centre + cells * backbone.info[-1].stride
    torch.testing.assert_close(middles[cells], expected.double(), rtol=0, atol=1e-6)


def skeleton(name: str, tail: bool = False) -> Backbone:
    """A backbone without values."""
    with torch.device("meta"):
        return build(name, tail)


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_the_network_in_order(name):
    backbone = build(name)
    parameters = [id(p) for stage in backbone.stages() for p in stage.parameters()]
    assert parameters == [id(p) for p in backbone.parameters()]
    assert all(list(stage.parameters()) for stage in backbone.stages())
    assert len(backbone.stages()) > 1


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_cut_leaves_out_what_only_deeper_maps_need(name):
    backbone = build(name)
    x = torch.randn(1, 3, 64, 64)
    whole = backbone(x)
    for info in reversed(backbone.info):
        backbone.cut(info.name)
        assert backbone.info[-1] == info
        maps = backbone(x)
        assert list(maps) == [feature.name for feature in backbone.info]
        for key, value in maps.items():
            torch.testing.assert_close(value, whole[key])
        with torch.enable_grad():
            maps = backbone(x.requires_grad_())
            torch.autograd.grad(sum(value.sum() for value in maps.values()), list(backbone.parameters()))
        staged = [id(p) for stage in backbone.stages() for p in stage.parameters()]
        assert staged == [id(p) for p in backbone.parameters()]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_tail_is_taken_out_of_the_network(name):
    backbone = build(name, tail=True)
    size = backbone.tail_size or 7
    channels = {info.name: info.channels for info in backbone.info}[backbone.region]
    if backbone.tail_size is not None:
        with pytest.raises(UserError, match=rf"model\.pool_size: 5, but .* reads maps of {size} x {size}"):
            backbone.tail(5)
    tail = backbone.tail(size)
    assert backbone.info[-1].name == backbone.region
    features = tail.eval()(torch.randn(2, channels, size, size))
    assert features.ndim == 2
    assert len(features) == 2
    shared = {id(p) for p in backbone.parameters()} & {id(p) for p in tail.parameters()}
    assert not shared
    assert list(backbone(torch.randn(1, 3, 64, 64))) == [info.name for info in backbone.info]
    staged = [id(p) for stage in backbone.stages() for p in stage.parameters()]
    assert staged == [id(p) for p in backbone.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_without_its_tail_a_network_keeps_nothing_of_it(name):
    kept, dropped = skeleton(name, tail=True), skeleton(name)
    kept.tail(kept.tail_size or 7)
    names = [info.name for info in dropped.info]
    dropped.cut(dropped.region)
    assert set(kept.state_dict()) == set(dropped.state_dict())
    assert names[: len(kept.info)] == [info.name for info in kept.info]
