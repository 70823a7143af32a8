"""A small backbone for CPUs, trained from scratch in minutes."""

from typing import ClassVar

from torch import Tensor, nn

from detkit.backbones.base import Backbone, FeatureInfo
from detkit.backbones.registry import BACKBONES


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


@BACKBONES.register("tiny")
class Tiny(Backbone):
    """Nine 3x3 convolutions with batch norm. Features c3 (stride 8, 96 channels), c4 (16, 128) and c5 (32, 128)."""

    info = (FeatureInfo("c3", 96, 8), FeatureInfo("c4", 128, 16), FeatureInfo("c5", 128, 32))

    region: ClassVar[str] = "c3"
    width: ClassVar[int] = 256

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_layer(3, 24, 2), _layer(24, 48, 2), _layer(48, 48))
        self.stage3 = nn.Sequential(_layer(48, 96, 2), _layer(96, 96))
        self.stage4 = nn.Sequential(_layer(96, 128, 2), _layer(128, 128))
        self.stage5 = nn.Sequential(_layer(128, 128, 2), _layer(128, 128))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def layer_groups(self) -> list[nn.Module]:
        return [self.stem, *(self.get_submodule(f"stage{stage}") for stage, _ in enumerate(self.info, 3))]

    def truncate(self, name: str) -> None:
        stages = len(self.info)
        super().truncate(name)
        for stage in range(len(self.info) + 3, stages + 3):
            delattr(self, f"stage{stage}")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        maps = {}
        for stage, info in enumerate(self.info, 3):
            maps[info.name] = x = self.get_submodule(f"stage{stage}")(x)
        return maps
