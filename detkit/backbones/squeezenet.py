"""SqueezeNet (Iandola et al., 2016): torchvision's, with the maps in front of its pools."""

from collections.abc import Sequence
from typing import ClassVar

from torch import nn
from torchvision import models
from torchvision.models import SqueezeNet as TorchvisionSqueezeNet

from detkit.backbones.base import FeatureInfo
from detkit.backbones.classic import SequentialBackbone
from detkit.backbones.registry import BACKBONES


class SqueezeNet(SequentialBackbone):
    """Features are the last fire module of each size. The first layer and the pools are unpadded."""

    region: ClassVar[str] = "fire9"

    def __init__(self, body: TorchvisionSqueezeNet, ends: Sequence[int], starts: Sequence[int]) -> None:
        assert isinstance(body.features, nn.Sequential)
        super().__init__(body.features, ends, starts)


@BACKBONES.register("squeezenet1_0")
class SqueezeNet10(SqueezeNet):
    """Features: fire4 (stride 4), fire8 (8), fire9 (16)."""

    info = (FeatureInfo("fire4", 256, 4), FeatureInfo("fire8", 512, 8), FeatureInfo("fire9", 512, 16))
    imagenet: ClassVar[str | None] = "SqueezeNet1_0_Weights.IMAGENET1K_V1"
    first_cell_centre: ClassVar[float] = 17.5

    def __init__(self) -> None:
        super().__init__(models.squeezenet1_0(weights=None), (6, 11, 13), (0, 3, 7, 12))


@BACKBONES.register("squeezenet1_1")
class SqueezeNet11(SqueezeNet):
    """Features: fire3 (stride 4), fire5 (8), fire9 (16)."""

    info = (FeatureInfo("fire3", 128, 4), FeatureInfo("fire5", 256, 8), FeatureInfo("fire9", 512, 16))
    imagenet: ClassVar[str | None] = "SqueezeNet1_1_Weights.IMAGENET1K_V1"
    first_cell_centre: ClassVar[float] = 15.5

    def __init__(self) -> None:
        super().__init__(models.squeezenet1_1(weights=None), (5, 8, 13), (0, 3, 6, 9))
