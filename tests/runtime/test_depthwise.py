"""Strided depthwise convolutions: float32 in a training step in bf16 on a CPU, untouched elsewhere."""

import copy

import torch
from torch import nn

from detkit.backbones.mobilenet import MobileNetV2
from detkit.runtime.depthwise import StridedDepthwise, mark_strided_depthwise


def layers(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if type(layer) is StridedDepthwise]


def test_strided_depthwise_layers_alone_are_marked() -> None:
    network = nn.Sequential(
        nn.Conv2d(8, 8, 3, 2, groups=8),
        nn.Conv2d(8, 16, 3, (1, 2), groups=8),
        nn.Conv2d(16, 16, 3, 1, groups=16),
        nn.Conv2d(16, 16, 3, 2, groups=4),
        nn.Conv2d(16, 8, 3, 2),
        nn.Conv2d(1, 8, 3, 2),
    )
    names, state = [*network], [*network.state_dict()]
    mark_strided_depthwise(network)
    assert layers(network) == [network[0], network[1]]
    assert [*network] == names
    assert [*network.state_dict()] == state


def test_those_of_mobilenet_v2() -> None:
    backbone = MobileNetV2()
    mark_strided_depthwise(backbone)
    assert [layer.in_channels for layer in layers(backbone)] == [96, 144, 192, 576]


def test_a_step_in_bf16_is_float32_within_and_bf16_without() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 8, 3, 2, 1, groups=8)
    marked = copy.deepcopy(plain)
    mark_strided_depthwise(marked)
    x = torch.randn(2, 8, 9, 9).bfloat16().requires_grad_()
    expected = plain(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        result = marked(x)
        assert result.dtype == torch.bfloat16
        assert torch.equal(result, expected.bfloat16())
        result.sum().backward()
    # the gradients of a sum, exactly: bf16 would round each partial sum of the weight's
    expected.sum().backward()
    assert torch.equal(marked.weight.grad, plain.weight.grad)


def test_elsewhere_it_is_any_convolution() -> None:
    plain = nn.Conv2d(8, 8, 3, 2, 1, groups=8)
    marked = copy.deepcopy(plain)
    mark_strided_depthwise(marked)
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    assert torch.equal(marked(x), plain(x))  # no autocast
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(marked(x), plain(x))  # detection
        assert marked(x).dtype == torch.bfloat16
