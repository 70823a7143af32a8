"""Strided depthwise convolutions in bf16: oneDNN's gradient takes 10 to 70 times as long as in float32."""

import torch
from torch import Tensor, nn


class StridedDepthwise(nn.Conv2d):
    """A convolution that a training step in bf16 on a CPU computes in float32; otherwise as any other."""

    def forward(self, input: Tensor) -> Tensor:
        on_cpu, taught = input.device.type == "cpu", torch.is_grad_enabled() and input.requires_grad
        if not (on_cpu and taught and torch.is_autocast_enabled("cpu")):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            result = super().forward(input.float())
        return result.to(torch.get_autocast_dtype("cpu"))


def mark_strided_depthwise(network: nn.Module) -> None:
    """Make each strided depthwise convolution of a network a `StridedDepthwise`, in place, parameters and all."""
    for layer in network.modules():
        if type(layer) is nn.Conv2d and 1 < layer.groups == layer.in_channels and max(layer.stride) > 1:
            layer.__class__ = StridedDepthwise  # a new layer would have to be put into whatever holds the old one
