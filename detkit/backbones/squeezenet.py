"""SqueezeNet (Iandola et al., 2016): torchvision's, with the last map of each size.

The first layer and the pools are unpadded.
"""

from torchvision import models

from detkit.backbones.base import FeatureInfo
from detkit.backbones.classic import SequentialBackbone
from detkit.backbones.registry import BACKBONES


@BACKBONES.register("squeezenet1_0")
class SqueezeNet10(SequentialBackbone):
    """Features: fire4 (stride 4), fire8 (8), fire9 (16)."""

    info = (FeatureInfo("fire4", 256, 4), FeatureInfo("fire8", 512, 8), FeatureInfo("fire9", 512, 16))
    imagenet = "SqueezeNet1_0_Weights.IMAGENET1K_V1"
    region = "fire9"
    first_cell_centre = 17.5

    def __init__(self) -> None:
        super().__init__(models.squeezenet1_0(weights=None).features, (6, 11, 13), (0, 3, 7, 12))


@BACKBONES.register("squeezenet1_1")
class SqueezeNet11(SequentialBackbone):
    """Features: fire3 (stride 4), fire5 (8), fire9 (16)."""

    info = (FeatureInfo("fire3", 128, 4), FeatureInfo("fire5", 256, 8), FeatureInfo("fire9", 512, 16))
    imagenet = "SqueezeNet1_1_Weights.IMAGENET1K_V1"
    region = "fire9"
    first_cell_centre = 15.5

    def __init__(self) -> None:
        super().__init__(models.squeezenet1_1(weights=None).features, (5, 8, 13), (0, 3, 6, 9))
