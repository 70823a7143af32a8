"""Necks: what lies between a backbone's maps and a head."""

from typing import cast

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from detkit.backbones import FeatureInfo


class FPN(nn.Module):
    """Feature pyramid (Lin et al., CVPR 2017): torchvision's, over the maps of strides 4 to 32, and one of stride 64.

    info: the maps p2, p3, ... that it gives, all with `channels`. norms: batch norm behind each convolution.
    """

    def __init__(self, info: tuple[FeatureInfo, ...], channels: int, norms: bool = False) -> None:
        super().__init__()
        self.names = [feature.name for feature in info]
        inputs, norm = [feature.channels for feature in info], nn.BatchNorm2d if norms else None
        self.pyramid = FeaturePyramidNetwork(inputs, channels, LastLevelMaxPool(), norm)
        strides = [*(feature.stride for feature in info), info[-1].stride * 2]
        self.info = tuple(FeatureInfo(f"p{stride.bit_length() - 1}", channels, stride) for stride in strides)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        maps = self.pyramid({name: features[name] for name in self.names})
        return dict(zip((feature.name for feature in self.info), cast("dict[str, Tensor]", maps).values()))
