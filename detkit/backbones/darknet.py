"""The networks of YOLOv1 (Redmon et al., CVPR 2016, section 2.1), as the authors' program darknet has them.

The paper's 24 convolutions are 20 that are pretrained on ImageNet, here, and 4 that the detection head adds; Fast
YOLO's 9 are 7 and 2. In the paper no convolution has batch norm, as in `darknet_yolov1_plain` and
`darknet_yolov1_tiny_plain`; in the configurations that darknet has had since 2016 all have, as in `darknet_yolov1` and
`darknet_yolov1_tiny`. Each reads the files of its own kind.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones.base import FeatureInfo, GlobalAveragePool, initialise
from detkit.backbones.classic import SequentialBackbone
from detkit.backbones.registry import BACKBONES

SLOPE = 0.1  # of the leaky rectifier, section 2.2, equation 2
# stages, which begin with a 2x2 pool except the first; each convolution is (channels, kernel, stride)
Stages = Sequence[Sequence[tuple[int, int, int]]]
YOLOV1: Stages = (
    ((64, 7, 2),),
    ((192, 3, 1),),
    ((128, 1, 1), (256, 3, 1), (256, 1, 1), (512, 3, 1)),
    (*((256, 1, 1), (512, 3, 1)) * 4, (512, 1, 1), (1024, 3, 1)),
    ((512, 1, 1), (1024, 3, 1)) * 2,
)
YOLOV1_TINY: Stages = tuple(((channels, 3, 1),) for channels in (16, 32, 64, 128, 256, 512, 1024))


def convolution(inputs: int, outputs: int, kernel: int, stride: int, batch_norm: bool = True) -> nn.Sequential:
    """A convolution that keeps the size but for its stride, batch norm, and the leaky rectifier."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not batch_norm)
    initialise(layer, SLOPE)
    norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
    return nn.Sequential(layer, *norm, nn.LeakyReLU(SLOPE, inplace=True))


def convolutions(specs: Sequence[Sequence[int]], inputs: int, batch_norm: bool) -> tuple[nn.Sequential, int]:
    """Such layers, each [channels, kernel, stride], one after the other, and the channels that they give."""
    layers = nn.Sequential()
    for outputs, kernel, stride in specs:
        layers.append(convolution(inputs, outputs, kernel, stride, batch_norm))
        inputs = outputs
    return layers, inputs


class LocallyConnected(nn.Module):
    """A padded convolution of stride 1 with separate weights for each cell of a map of `size`, height and width.

    weight: (cells, outputs, inputs * kernel * kernel); bias: (outputs, height, width).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(size[0] * size[1], outputs, inputs * kernel * kernel))
        self.bias = nn.Parameter(torch.zeros(outputs, *size))
        nn.init.normal_(self.weight, std=(2 / ((1 + SLOPE**2) * self.weight.shape[2])) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, height, width) -> (B, outputs, height, width)."""
        windows = F.unfold(x, self.kernel, padding=self.kernel // 2)
        # one matrix product a cell: (cells, outputs, K) x (cells, K, B)
        out = torch.bmm(self.weight, windows.permute(2, 1, 0))
        return out.permute(2, 1, 0).reshape(x.shape[0], *self.bias.shape) + self.bias


class Darknet(SequentialBackbone):
    """Features c2 (stride 4), c3 (8), c4 (16), c5 (32) and so on: the last map before each pool, and the last one."""

    darknet = True
    layers: nn.Sequential

    def __init__(self, stages: Stages, batch_norm: bool = True) -> None:
        layers, ends, info = nn.Sequential(), [], []
        inputs, stride, centre, region_centre = 3, 1, 0.5, 0.5
        for number, convolutions in enumerate(stages):
            stage = nn.Sequential()
            if number > 0:
                stage.append(nn.MaxPool2d(2))
                centre += stride / 2  # the middle of two cells; padded odd kernels keep it
                stride *= 2
            for outputs, kernel, step in convolutions:
                stage.append(convolution(inputs, outputs, kernel, step, batch_norm))
                inputs, stride = outputs, stride * step
            layers.append(stage)
            if stride >= 4:
                ends.append(len(layers))
                info.append(FeatureInfo(f"c{stride.bit_length() - 1}", inputs, stride))
            if stride == 16:
                region_centre = centre
        super().__init__(layers, ends, range(len(layers)), row="layers")
        self.info, self.first_cell_centre = tuple(info), region_centre

    def tail(self, size: int) -> nn.Module:
        """The layers behind c4 and global average pooling; they halve the size at each pool."""
        stages = list(self.layers)
        self.truncate(self.region)
        return nn.Sequential(*stages[len(self.layers) :], GlobalAveragePool())


for _name, _stages in (("darknet_yolov1", YOLOV1), ("darknet_yolov1_tiny", YOLOV1_TINY)):
    BACKBONES.register(_name)(partial(Darknet, _stages))
    BACKBONES.register(f"{_name}_plain")(partial(Darknet, _stages, False))
