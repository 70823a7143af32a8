"""Feature pyramids: a neck between a backbone's maps and the heads, and the region head's layers above it."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detkit.backbones import FeatureInfo, fully_connected

MAX_WIDTH = 1024  # FPN, section 4.2: of the two fully connected layers, narrower than those of VGG


class FPN(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017): torchvision's, over the maps of strides 4 to 32, and one of stride 64.

    info: the maps p2, p3, ... that it gives, all with `channels`. norm: batch norm behind each convolution.
    """

    def __init__(self, info: Sequence[FeatureInfo], channels: int, norm: bool = False) -> None:
        super().__init__()
        self.names = [feature.name for feature in info]
        inputs = [feature.channels for feature in info]
        norm_layer = nn.BatchNorm2d if norm else None
        self.pyramid = FeaturePyramidNetwork(inputs, channels, LastLevelMaxPool(), norm_layer)
        strides = [*(feature.stride for feature in info), info[-1].stride * 2]
        self.info = tuple(FeatureInfo(f"p{stride.bit_length() - 1}", channels, stride) for stride in strides)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = self.pyramid({name: features[name] for name in self.names})
        return dict(zip((feature.name for feature in self.info), cast("dict[str, Tensor]", maps).values()))


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
