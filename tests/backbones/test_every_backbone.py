"""What every registered backbone promises."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models
from torchvision.ops import SqueezeExcitation

from detkit.backbones import Backbone, create_backbone, list_backbones, load_weights
from detkit.backbones import weights as weights_module
from detkit.backbones.inception import ToUnitRange
from detkit.backbones.zfnet import ResponseNorm
from detkit.config import BackboneConfig
from detkit.errors import UserError

NAMES = list_backbones()


def min_side(name: str) -> int:
    """Pixels a side of a small image that the network can see."""
    return 80 if name == "inception_v3" else 64


@pytest.fixture(autouse=True)
def fast_initialisation(monkeypatch):
    """Plain values for convolutions, none for fully connected layers, whose 100 million no test here looks at."""

    def fill(tensor: Tensor, *_, **__) -> Tensor:
        with torch.no_grad():
            if tensor.ndim == 4:
                tensor.uniform_(-1, 1).mul_((3 / tensor[0].numel()) ** 0.5)
            elif tensor.ndim == 1:
                tensor.zero_()
        return tensor

    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_"):
        monkeypatch.setattr(nn.init, name, fill)


def build(name: str, tail: bool = False) -> Backbone:
    return create_backbone(BackboneConfig(name), tail=tail).eval()


def skeleton(name: str, tail: bool = False) -> Backbone:
    """A backbone without values."""
    with torch.device("meta"):
        return build(name, tail)


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


# beside ReLUs, which leave what is above 0
NONLINEAR = (nn.ReLU6, nn.Hardswish, SqueezeExcitation, ResponseNorm)


class Mean(nn.AvgPool2d):
    """A pool's mean in place of its maximum: the mean of coordinates is that of the window's middle."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, count_include_pad=False)


def linearise(module: nn.Module) -> None:
    """Make a network sum what it sees at the middle of its kernels, with weights above 0."""
    for name, layer in module.named_children():
        if isinstance(layer, nn.MaxPool2d):
            setattr(module, name, Mean(layer))
        elif isinstance(layer, (*NONLINEAR, nn.BatchNorm2d, ToUnitRange)):
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
def test_cells_of_the_region_map_lie_where_the_backbone_says(name, monkeypatch):
    """An image of each pixel's coordinate, so that each cell tells the coordinate of its middle."""
    backbone = skeleton(name)
    backbone.truncate(backbone.region)
    linearise(backbone.to_empty(device="cpu"))
    monkeypatch.setattr(F, "max_pool2d", F.avg_pool2d)
    coordinates = (torch.arange(256) + 0.5).expand(1, 3, min_side(name), 256)
    seen = [backbone(x)[backbone.region] for x in (coordinates, torch.ones_like(coordinates))]
    middles = (seen[0] / seen[1])[0, 0, 1]
    # no window of these cells sticks out of the image
    cells = torch.arange(3, len(middles) - 4)
    assert len(cells) > 2
    expected = backbone.first_cell_centre + cells * backbone.info[-1].stride
    torch.testing.assert_close(middles[cells], expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_layer_groups_are_the_network_in_order(name):
    backbone = build(name)
    parameters = [id(p) for group in backbone.layer_groups() for p in group.parameters()]
    assert parameters == [id(p) for p in backbone.parameters()]
    assert all(list(group.parameters()) for group in backbone.layer_groups())
    assert len(backbone.layer_groups()) > 1


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_network_is_what_gives_the_maps(name):
    step_by_step = skeleton(name)
    side = min_side(name)
    for info in reversed(step_by_step.info):
        step_by_step.truncate(info.name)
        backbone = skeleton(name)
        backbone.truncate(info.name)
        assert list(backbone.state_dict()) == list(step_by_step.state_dict())
        assert backbone.info == step_by_step.info
        assert backbone.info[-1] == info
        grouped = [id(p) for group in backbone.layer_groups() for p in group.parameters()]
        assert grouped == [id(p) for p in backbone.parameters()]
        # the last map needs every parameter
        maps = backbone(torch.empty(2, 3, side, side, device="meta"))
        assert list(maps) == [feature.name for feature in backbone.info]
        torch.autograd.grad(maps[info.name].sum(), list(backbone.parameters()))


def test_maps_that_ssd_normalises_are_those_of_vggs_without_batch_norm():
    marked = {name: skeleton(name).l2norm_features for name in NAMES}
    assert {name for name, features in marked.items() if features} == {
        *("vgg11", "vgg13", "vgg16", "vgg19", "vgg16_reduced")
    }
    assert marked["vgg16"] == ("conv3_3", "conv4_3")
    assert marked["vgg16_reduced"] == ("conv4_3",)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_truncating_changes_no_map(name):
    backbone = build(name)
    x = torch.randn(1, 3, min_side(name), min_side(name))
    maps = backbone(x)
    for info in reversed(backbone.info[:-1]):
        backbone.truncate(info.name)
        for key, each in backbone(x).items():
            torch.testing.assert_close(each, maps[key])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_tail_is_taken_out_of_the_network(name):
    backbone = skeleton(name, tail=True)
    size = backbone.tail_size or 7
    channels = {info.name: info.channels for info in backbone.info}[backbone.region]
    if backbone.tail_size is not None:
        with pytest.raises(UserError, match=rf"model\.pool_size: 5, but .* reads maps of {size} x {size}"):
            backbone.tail(5)
    tail = backbone.tail(size)
    assert backbone.info[-1].name == backbone.region
    features = tail.eval().to("meta")(torch.empty(2, channels, size, size, device="meta"))
    assert features.ndim == 2
    assert len(features) == 2
    shared = {id(p) for p in backbone.parameters()} & {id(p) for p in tail.parameters()}
    assert not shared
    assert list(shapes(backbone, min_side(name), min_side(name))) == [info.name for info in backbone.info]
    grouped = [id(p) for group in backbone.layer_groups() for p in group.parameters()]
    assert grouped == [id(p) for p in backbone.parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_without_its_tail_a_network_keeps_nothing_of_it(name):
    kept, dropped = skeleton(name, tail=True), skeleton(name)
    kept.tail(kept.tail_size or 7)
    names = [info.name for info in dropped.info]
    dropped.truncate(dropped.region)
    assert set(kept.state_dict()) == set(dropped.state_dict())
    assert names[: len(kept.info)] == [info.name for info in kept.info]


PUBLISHED = [name for name in NAMES if name != "vgg16_reduced" and name in models.list_models()]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("vgg")])
def test_vggs_pools_round_up_as_caffes(name):
    """Of 600 x 800 pixels the authors' Faster R-CNN has 38 x 50 cells, of 300 x 300 SSD's conv4_3 has 38 x 38."""
    backbone = skeleton(name)
    assert [shape[2:] for shape in shapes(backbone, 600, 800).values()][-1] == (38, 50)
    conv4_3 = [shape[2:] for shape in shapes(backbone, 300, 300).values()][-2]
    assert conv4_3 == (38, 38)


def test_imagenet_names_are_torchvisions():
    assert {name for name in NAMES if skeleton(name).imagenet} == {*PUBLISHED, "vgg16_reduced", "resnet50_reduced"}
    for name in PUBLISHED:
        imagenet = skeleton(name).imagenet
        assert imagenet is not None
        assert imagenet.lower() == f"{name}_weights.imagenet1k_v1"
        assert models.get_weight(imagenet) in models.get_model_weights(name)


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_torchvisions_weights_give_torchvisions_features(name, monkeypatch, capsys):
    torch.manual_seed(4)
    keys = {"transform_input": True} if name in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of how torchvision will initialise its Inceptions
        theirs = models.get_model(name, weights=None, **keys).eval()
    if name.startswith(("alexnet", "vgg")):
        theirs.classifier = nn.Identity()
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1)
            layer.running_var.uniform_(0.5, 2)
    given = SimpleNamespace(get_state_dict=lambda **_: theirs.state_dict(), url="https://localhost/none.pth")
    monkeypatch.setattr(weights_module, "get_weight", lambda name: given)
    ours = build(name)
    load_weights(ours, "imagenet")
    assert "left as initialised" not in capsys.readouterr().err

    seen = []
    behind = theirs.avgpool if hasattr(theirs, "avgpool") else theirs.classifier
    behind.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 3, min_side(name), min_side(name))
    theirs(x)
    deepest = list(ours(x).values())[-1]
    if name == "mobilenet_v2":  # whose pool is a function
        deepest = deepest.mean((2, 3))
    if name.startswith(("alexnet", "vgg")):
        deepest = F.max_pool2d(deepest, 3 if name == "alexnet" else 2, 2)
    assert deepest.std() > 1e-3
    torch.testing.assert_close(deepest, seen[0], rtol=1e-3, atol=1e-4 * float(deepest.std()))
