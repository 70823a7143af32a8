"""MobileNetV2 (Sandler et al., 2018) and V3 (Howard et al., 2019): torchvision's, with the maps that SSDLite reads."""

from typing import ClassVar

from torch import Tensor, nn
from torchvision import models

from detkit.backbones.base import Backbone, FeatureInfo
from detkit.backbones.registry import BACKBONES


class MobileNet(Backbone):
    """Features c3 (stride 8), c4 (stride 16) and c5 (stride 32).

    c3 and c4 are the *expanded* tensors (after their nonlinearity) of the first block of the next stage, as in the
    papers' SSDLite (V2, section 6.2; V3, section 6.3): the block's output is a linear bottleneck of few channels.

    blocks: the strided blocks whose expanded tensors are c3 and c4; inner: torchvision's name of a block's layers;
    starts: the first block of each stage.
    """

    blocks: ClassVar[dict[str, int]]
    inner: ClassVar[str]
    starts: ClassVar[tuple[int, ...]]

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features

    def layer_groups(self) -> list[nn.Module]:
        starts = [start for start in self.starts if start < len(self.features)]
        return [self.features[start:stop] for start, stop in zip(starts, [*starts[1:], len(self.features)])]

    def truncate(self, name: str) -> None:
        super().truncate(name)
        if name not in self.blocks:
            return
        block = self.blocks[name]
        setattr(self.features[block], self.inner, self._layers(block)[:1])
        self.features = self.features[: block + 1]

    def tail(self, size: int) -> nn.Module:
        """The layers behind c4 and global average pooling; they halve the size."""
        block = self.blocks[self.region]
        deep = nn.Sequential(self._layers(block)[1:], self.features[block + 1 :], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.truncate(self.region)
        return deep

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        first = 0
        for info in self.info:
            block = self.blocks.get(info.name)
            if block is None:
                maps[info.name] = self.features[first:](x)
                break
            x = self.features[first:block](x)
            layers = self._layers(block)
            maps[info.name] = expanded = layers[0](x)
            x = layers[1:](expanded)
            first = block + 1
        return maps

    def _layers(self, block: int) -> nn.Sequential:
        """The expansion of a strided block, then what follows it."""
        layers = self.features[block].get_submodule(self.inner)
        assert isinstance(layers, nn.Sequential)
        return layers


@BACKBONES.register("mobilenet_v2")
class MobileNetV2(MobileNet):
    """MobileNetV2 with 192, 576 and 1280 channels."""

    info = (FeatureInfo("c3", 192, 8), FeatureInfo("c4", 576, 16), FeatureInfo("c5", 1280, 32))
    imagenet: ClassVar[str | None] = "MobileNet_V2_Weights.IMAGENET1K_V1"
    blocks: ClassVar[dict[str, int]] = {"c3": 7, "c4": 14}
    inner: ClassVar[str] = "conv"
    starts: ClassVar[tuple[int, ...]] = (0, 2, 4, 7, 14)

    def __init__(self) -> None:
        super().__init__(models.mobilenet_v2(weights=None).features)


@BACKBONES.register("mobilenet_v3_large")
class MobileNetV3Large(MobileNet):
    """MobileNetV3-Large with 240, 672 and 960 channels."""

    info = (FeatureInfo("c3", 240, 8), FeatureInfo("c4", 672, 16), FeatureInfo("c5", 960, 32))
    imagenet: ClassVar[str | None] = "MobileNet_V3_Large_Weights.IMAGENET1K_V1"
    blocks: ClassVar[dict[str, int]] = {"c3": 7, "c4": 13}
    inner: ClassVar[str] = "block"
    starts: ClassVar[tuple[int, ...]] = (0, 2, 4, 7, 13)

    def __init__(self) -> None:
        super().__init__(models.mobilenet_v3_large(weights=None).features)


@BACKBONES.register("mobilenet_v3_small")
class MobileNetV3Small(MobileNet):
    """MobileNetV3-Small with 96, 288 and 576 channels."""

    info = (FeatureInfo("c3", 96, 8), FeatureInfo("c4", 288, 16), FeatureInfo("c5", 576, 32))
    imagenet: ClassVar[str | None] = "MobileNet_V3_Small_Weights.IMAGENET1K_V1"
    blocks: ClassVar[dict[str, int]] = {"c3": 4, "c4": 9}
    inner: ClassVar[str] = "block"
    starts: ClassVar[tuple[int, ...]] = (0, 1, 2, 4, 9)

    def __init__(self) -> None:
        super().__init__(models.mobilenet_v3_small(weights=None).features)
