"""ResNet (He et al., 2016): torchvision's, with the maps of its stages."""

from collections import OrderedDict
from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision import models

from detkit.backbones.base import FeatureInfo, GlobalAveragePool
from detkit.backbones.classic import SequentialBackbone
from detkit.backbones.registry import BACKBONES


class ResNet(SequentialBackbone):
    """Features c2 (stride 4), c3 (8), c4 (16) and c5 (32): the last map of each stage."""

    layer4: nn.Module

    def __init__(self, depth: int) -> None:
        body: Any = models.get_model(f"resnet{depth}", weights=None)
        *layers, _, _ = body.named_children()
        super().__init__(nn.Sequential(OrderedDict(layers)), (5, 6, 7, 8), (0, 4, 5, 6, 7), row="")
        deepest = body.fc.in_features
        self.info = tuple(FeatureInfo(f"c{i + 2}", deepest >> (3 - i), 4 << i) for i in range(4))
        # the first version of the weights: the ones that the papers' accuracies rest on
        self.imagenet = f"ResNet{depth}_Weights.IMAGENET1K_V1"

    def tail(self, size: int) -> nn.Module:
        """conv5 and global average pooling (He et al., 2016, appendix A); it halves the size."""
        deep = self.layer4
        self.truncate(self.region)
        return nn.Sequential(deep, GlobalAveragePool())


class ReducedResNet(ResNet):
    """ResNet without conv5_x and with conv4_x at stride 1, as under NVIDIA's SSD300 (DeepLearningExamples, v1.1).

    Features c2 (stride 4), c3 and c4 (8 both).
    """

    def __init__(self, depth: int) -> None:
        super().__init__(depth)
        self.truncate("c4")
        for layer in self.get_submodule("layer3.0").modules():
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
        self.info = (*self.info[:2], self.info[2]._replace(stride=8))

    def tail(self, size: int) -> nn.Module:
        return SequentialBackbone.tail(self, size)

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in state.items() if not key.startswith("layer4.")}


for _depth in (18, 34, 50, 101, 152):
    BACKBONES.register(f"resnet{_depth}")(partial(ResNet, _depth))
BACKBONES.register("resnet50_reduced")(partial(ReducedResNet, 50))
