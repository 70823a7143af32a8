"""MobileNetV2 (Sandler et al., 2018): torchvision's, with the maps that SSD reads."""

from typing import ClassVar

from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from detkit.backbones.base import Backbone, FeatureInfo
from detkit.backbones.registry import BACKBONES

EXPANDING = {"c3": 7, "c4": 14}  # the strided blocks whose expanded tensors are maps


@BACKBONES.register("mobilenet_v2")
class MobileNetV2(Backbone):
    """Features c3 (stride 8), c4 (stride 16) and c5 (stride 32).

    c3 and c4 are the *expanded* tensors (6 x the channels, after their ReLU6) of the first block of the next stage,
    as in the MobileNetV2 paper's SSDLite (section 6.2): the block's own output is a linear bottleneck of few channels.
    """

    info = (FeatureInfo("c3", 192, 8), FeatureInfo("c4", 576, 16), FeatureInfo("c5", 1280, 32))
    imagenet: ClassVar[str | None] = "MobileNet_V2_Weights.IMAGENET1K_V1"

    def __init__(self) -> None:
        super().__init__()
        self.features = mobilenet_v2(weights=None).features

    def stages(self) -> list[nn.Module]:
        return [self.features[start:stop] for start, stop in ((0, 2), (2, 4), (4, 7), (7, 14), (14, 19))]

    def cut(self, name: str) -> None:
        super().cut(name)
        if name == "c5":
            return
        block = EXPANDING[name]
        self.features[block].conv = self._layers(block)[:1]
        self.features = self.features[: block + 1]

    def tail(self, size: int) -> nn.Module:
        """The layers behind c4 and global average pooling; they halve the size."""
        block = EXPANDING[self.region]
        deep = nn.Sequential(self._layers(block)[1:], self.features[block + 1 :], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.cut(self.region)
        return deep

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        first = 0
        for info in self.info:
            block = EXPANDING.get(info.name)
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
        layers = self.features[block].get_submodule("conv")
        assert isinstance(layers, nn.Sequential)
        return layers
