"""Darknet-53 (Redmon and Farhadi, 2018, table 1), the network of YOLOv3."""

from torch import Tensor, nn

from detkit.backbones.base import FeatureInfo
from detkit.backbones.classic import SequentialBackbone
from detkit.backbones.darknet import convolution
from detkit.backbones.registry import BACKBONES

FIRST = 32  # channels of the first convolution
STAGES = ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4))  # channels and residual blocks behind each stride of 2


class Residual(nn.Sequential):
    """A 1x1 convolution to half the channels, a 3x3 one, and a shortcut around both."""

    def __init__(self, channels: int) -> None:
        super().__init__(convolution(channels, channels // 2, 1, 1), convolution(channels // 2, channels, 3, 1))

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


@BACKBONES.register("darknet53")
class Darknet53(SequentialBackbone):
    """The first 52 convolutions. Features c2 (stride 4), c3 (8), c4 (16) and c5 (32): the last map of each stage.

    The 53rd gives the scores of ImageNet's classes, and is left out, as in darknet's `darknet53.conv.74`.
    """

    darknet = True
    info = tuple(FeatureInfo(f"c{number}", size, 1 << number) for number, (size, _) in enumerate(STAGES[1:], 2))

    def __init__(self) -> None:
        layers = [convolution(3, FIRST, 3, 1)]
        inputs = FIRST
        for channels, blocks in STAGES:
            layers.append(
                nn.Sequential(convolution(inputs, channels, 3, 2), *(Residual(channels) for _ in range(blocks)))
            )
            inputs = channels
        super().__init__(nn.Sequential(*layers), range(3, len(layers) + 1), range(len(layers)))
