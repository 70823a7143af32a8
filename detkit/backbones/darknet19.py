"""Darknet-19 (Redmon and Farhadi, 2017, table 6), the network of YOLOv2."""

from torch import nn

from detkit.backbones.base import FeatureInfo, initialise
from detkit.backbones.classic import SequentialBackbone
from detkit.backbones.darknet import SLOPE
from detkit.backbones.registry import BACKBONES

# channels between two pools; 3x3 and 1x1 convolutions take turns
BLOCKS = (
    *((32,), (64,), (128, 64, 128), (256, 128, 256)),
    *((512, 256, 512, 256, 512), (1024, 512, 1024, 512, 1024)),
)


def _layer(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(SLOPE, inplace=True),
    )


@BACKBONES.register("darknet19")
class Darknet19(SequentialBackbone):
    """The first 18 convolutions. Features: conv8 (stride 8), conv13 (16), conv18 (32).

    The 19th gives the scores of ImageNet's classes, and is left out, as in darknet's `darknet19_448.conv.23`.
    """

    darknet = True
    info = (FeatureInfo("conv8", 256, 8), FeatureInfo("conv13", 512, 16), FeatureInfo("conv18", 1024, 32))
    region = "conv13"
    first_cell_centre = 8.0

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        starts, ends = [], []
        channels = 3
        for block in BLOCKS:
            starts.append(len(layers))
            for number, outputs in enumerate(block):
                layers.append(_layer(channels, outputs, 1 if number % 2 else 3))
                channels = outputs
            ends.append(len(layers))
            layers.append(nn.MaxPool2d(2, 2))
        super().__init__(nn.Sequential(*layers[:-1]), ends[3:], starts)
        initialise(self, SLOPE)
