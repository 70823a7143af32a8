"""MobileNetV2 (Sandler et al., 2018) and V3 (Howard et al., 2019): torchvision's, with the maps that SSDLite reads."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision import models

from detkit.backbones.base import FeatureInfo, GlobalAveragePool
from detkit.backbones.classic import SequentialBackbone
from detkit.backbones.registry import BACKBONES


class MobileNet(SequentialBackbone):
    """Features c3 (stride 8), c4 (stride 16) and c5 (stride 32).

    c3 and c4 are the *expanded* tensors (after their nonlinearity) of the first block of the next stage, as in the
    papers' SSDLite (V2, section 6.2; V3, section 6.3): the block's output is a linear bottleneck of few channels.

    blocks: the strided blocks whose expanded tensors are c3 and c4; starts: the first block of each stage before them.
    inner: torchvision's name of a block's layers.
    """

    inner: str = "block"

    def __init__(self, features: nn.Sequential, blocks: tuple[int, int], starts: tuple[int, int, int]) -> None:
        super().__init__(features, (*(block + 1 for block in blocks), len(features)), (*starts, *blocks))
        self.blocks: dict[str, int] = dict(zip(("c3", "c4"), blocks))

    def truncate(self, name: str) -> None:
        super().truncate(name)
        if name in self.blocks:
            block = self.blocks[name]
            setattr(self.features[block], self.inner, self._inner_layers(block)[:1])

    def tail(self, size: int) -> nn.Module:
        """The layers behind c4 and global average pooling; they halve the size."""
        block = self.blocks[self.region]
        deep = (self._inner_layers(block)[1:], self.features[block + 1 :])
        self.truncate(self.region)
        return nn.Sequential(*deep, GlobalAveragePool())

    def _between(self, index: int) -> Sequence[nn.Module]:
        block = self.blocks[self.info[index].name]
        return [self._inner_layers(block)[1:], *super()._between(index)]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        first = 0
        for name, block in list(self.blocks.items())[: len(self.info)]:
            x = self.features[first:block](x)
            layers = self._inner_layers(block)
            maps[name] = expanded = layers[0](x)
            x = layers[1:](expanded)
            first = block + 1
        return maps if len(self.info) == len(maps) else maps | {"c5": self.features[first:](x)}

    def _inner_layers(self, block: int) -> nn.Sequential:
        """The expansion of a strided block, then what follows it."""
        layers = self.features[block].get_submodule(self.inner)
        assert isinstance(layers, nn.Sequential)
        return layers


@BACKBONES.register("mobilenet_v2")
class MobileNetV2(MobileNet):
    """MobileNetV2 with 192, 576 and 1280 channels."""

    info = (FeatureInfo("c3", 192, 8), FeatureInfo("c4", 576, 16), FeatureInfo("c5", 1280, 32))
    imagenet = "MobileNet_V2_Weights.IMAGENET1K_V1"
    inner = "conv"

    def __init__(self) -> None:
        super().__init__(models.mobilenet_v2(weights=None).features, (7, 14), (0, 2, 4))


@BACKBONES.register("mobilenet_v3_large")
class MobileNetV3Large(MobileNet):
    """MobileNetV3-Large with 240, 672 and 960 channels."""

    info = (FeatureInfo("c3", 240, 8), FeatureInfo("c4", 672, 16), FeatureInfo("c5", 960, 32))
    imagenet = "MobileNet_V3_Large_Weights.IMAGENET1K_V1"

    def __init__(self) -> None:
        super().__init__(models.mobilenet_v3_large(weights=None).features, (7, 13), (0, 2, 4))


@BACKBONES.register("mobilenet_v3_small")
class MobileNetV3Small(MobileNet):
    """MobileNetV3-Small with 96, 288 and 576 channels."""

    info = (FeatureInfo("c3", 96, 8), FeatureInfo("c4", 288, 16), FeatureInfo("c5", 576, 32))
    imagenet = "MobileNet_V3_Small_Weights.IMAGENET1K_V1"

    def __init__(self) -> None:
        super().__init__(models.mobilenet_v3_small(weights=None).features, (4, 9), (0, 1, 2))
