"""ResNet (He et al., 2016): torchvision's, with the maps of its stages."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import ResNet as TorchvisionResNet

from detkit.backbones.base import Backbone, FeatureInfo
from detkit.backbones.registry import BACKBONES


class ResNet(Backbone):
    """Features c2 (stride 4), c3 (8), c4 (16) and c5 (32): the last map of each stage."""

    def __init__(self, build: Callable[..., TorchvisionResNet], imagenet: str) -> None:
        super().__init__()
        body = build(weights=None)
        self.imagenet = imagenet  # pyright: ignore[reportAttributeAccessIssue]
        self.conv1, self.bn1, self.relu, self.maxpool = body.conv1, body.bn1, body.relu, body.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4
        deepest = body.fc.in_features
        self.info = tuple(FeatureInfo(f"c{i + 2}", deepest >> (3 - i), 4 << i) for i in range(4))

    def layer_groups(self) -> list[nn.Module]:
        layers = (self.get_submodule(f"layer{layer}") for layer, _ in enumerate(self.info, 1))
        return [nn.ModuleList([self.conv1, self.bn1]), *layers]

    def truncate(self, name: str) -> None:
        layers = len(self.info)
        super().truncate(name)
        for layer in range(len(self.info) + 1, layers + 1):
            delattr(self, f"layer{layer}")

    def tail(self, size: int) -> nn.Module:
        """conv5 and global average pooling (He et al., 2016, appendix A); it halves the size."""
        deep = self.layer4
        self.truncate(self.region)
        return nn.Sequential(deep, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = {}
        for layer, info in enumerate(self.info, 1):
            maps[info.name] = x = self.get_submodule(f"layer{layer}")(x)
        return maps


def _register(depth: int, version: str) -> None:
    build: Callable[..., nn.Module] = getattr(models, f"resnet{depth}")
    name = f"ResNet{depth}_Weights.{version}"
    BACKBONES.register(f"resnet{depth}")(partial(ResNet, build, name))  # pyright: ignore[reportArgumentType]


# the first version of the weights: the ones that the papers' accuracies rest on
for _depth in (18, 34, 50, 101, 152):
    _register(_depth, "IMAGENET1K_V1")
