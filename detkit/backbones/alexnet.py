"""AlexNet (Krizhevsky et al., 2012), as torchvision has it: the variant of "one weird trick" (Krizhevsky, 2014).

That one has 64, 192, 384, 256 and 256 channels on one GPU, without groups and without response normalisation.
"""

from collections import OrderedDict

from torch import nn
from torchvision.models import alexnet

from detkit.backbones.base import FeatureInfo
from detkit.backbones.classic import ClassicBackbone
from detkit.backbones.registry import BACKBONES

POOL5 = 12


@BACKBONES.register("alexnet")
class AlexNet(ClassicBackbone):
    """The five convolutions, without pool5. Feature: conv5 (stride 16). Tail: fc6, fc7."""

    info = (FeatureInfo("conv5", 256, 16),)
    imagenet = "AlexNet_Weights.IMAGENET1K_V1"
    region = "conv5"
    first_cell_centre = 15.5  # both pools are unpadded
    tail_size = 6

    def __init__(self) -> None:
        body = alexnet(weights=None)
        # dropout behind each layer as in the paper; torchvision's is in front, under whose names the weights are stored
        _, fc6, relu6, drop6, fc7, relu7, _ = body.classifier.children()
        layers = {"1": fc6, "2": relu6, "3": drop6, "4": fc7, "5": relu7, "6": nn.Dropout()}
        super().__init__(body.features[:POOL5], nn.Sequential(OrderedDict(layers)), (POOL5,), (0, 3, 6))
