"""A small backbone for CPUs, trained from scratch in minutes."""

from collections import OrderedDict

from torch import nn

from detkit.backbones.base import Backbone, FeatureInfo, initialise
from detkit.backbones.classic import SequentialBackbone
from detkit.backbones.registry import BACKBONES


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


@BACKBONES.register("tiny")
class Tiny(SequentialBackbone):
    """Nine 3x3 convolutions with batch norm. Features c3 (stride 8, 96 channels), c4 (16, 128) and c5 (32, 128)."""

    info = (FeatureInfo("c3", 96, 8), FeatureInfo("c4", 128, 16), FeatureInfo("c5", 128, 32))
    region, width = "c3", 256
    tail = Backbone.tail  # two new layers

    def __init__(self) -> None:
        stages: OrderedDict[str, nn.Module] = OrderedDict(
            stem=nn.Sequential(_layer(3, 24, 2), _layer(24, 48, 2), _layer(48, 48)),
            stage3=nn.Sequential(_layer(48, 96, 2), _layer(96, 96)),
            stage4=nn.Sequential(_layer(96, 128, 2), _layer(128, 128)),
            stage5=nn.Sequential(_layer(128, 128, 2), _layer(128, 128)),
        )
        super().__init__(nn.Sequential(stages), ends=(2, 3, 4), starts=(0, 1, 2, 3), row="")
        initialise(self, mode="fan_out")
