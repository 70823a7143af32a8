"""Feature pyramids: a neck between a backbone's maps and the heads, and the region head's layers above it."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from detkit.backbones import FeatureInfo, fully_connected
from detkit.errors import UserError

MAX_WIDTH = 1024  # FPN, section 4.2: of the two fully connected layers, narrower than those of VGG


class FPN(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017): torchvision's, and one or two maps that are coarser.

    info: the maps p2, p3, ... that it gives, all with `channels`. norm: batch norm behind each convolution. coarser:
    `pool` takes every second cell of the coarsest map, which the RPN reads; `c5` and `p5` are RetinaNet's two
    convolutions of stride 2, on the backbone's coarsest map or on the pyramid's. UserError for two maps of one stride.
    """

    def __init__(self, info: Sequence[FeatureInfo], channels: int, norm: bool = False, coarser: str = "pool") -> None:
        super().__init__()
        for fine, coarse in pairwise(info):
            if fine.stride == coarse.stride:
                raise UserError(
                    f"model.features: {fine.name} and {coarse.name} have one stride, {fine.stride}, and a pyramid "
                    "wants one map of each; name one of them"
                )
        self.names = [feature.name for feature in info]
        inputs = [feature.channels for feature in info]
        norm_layer = nn.BatchNorm2d if norm else None
        last = info[-1].stride
        if coarser == "pool":
            block, added = LastLevelMaxPool(), [last * 2]
        else:
            block, added = LastLevelP6P7(inputs[-1] if coarser == "c5" else channels, channels), [last * 2, last * 4]
            block.use_P5 = coarser == "p5"  # torchvision goes by the channels, which may be as many
        self.pyramid = FeaturePyramidNetwork(inputs, channels, block, norm_layer)
        strides = [*(feature.stride for feature in info), *added]
        self.info = tuple(FeatureInfo(f"p{stride.bit_length() - 1}", channels, stride) for stride in strides)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = self.pyramid({name: features[name] for name in self.names})
        return dict(zip((feature.name for feature in self.info), cast("dict[str, Tensor]", maps).values()))


def pad_to(pixels: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) with 0 at the right and bottom to sides that are a multiple of `multiple`."""
    if multiple == 1:
        return pixels
    # whether or not there is anything to pad: an exported network has sides that are not known beforehand
    down, right = (-side % multiple for side in pixels.shape[-2:])
    return F.pad(pixels, (0, right, 0, down))


def fpn_tail(channels: int, pool_size: int, width: int, convs: int = 0) -> nn.Sequential:
    """Return the layers of a region head above a pyramid, (R, channels, pool_size, pool_size) to (R, width).

    Two fully connected ones (section 4.2), or `convs` 3x3 convolutions with batch norm and one fully connected one, as
    in Group Normalization (Wu and He, 2018, section 4.2), there with group norm. width: of a backbone's own; a wider
    one is cut to MAX_WIDTH.
    """
    width = min(width, MAX_WIDTH)
    if not convs:
        return fully_connected(channels * pool_size**2, width)
    layers: list[nn.Module] = []
    for _ in range(convs):
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * pool_size**2, width), nn.ReLU())
