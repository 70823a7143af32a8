"""MobileNetV2 (Sandler et al., 2018): torchvision's, with the maps that SSD reads."""

from typing import ClassVar

from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from detkit.backbones.base import Backbone, FeatureInfo
from detkit.backbones.registry import BACKBONES


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

    def tail(self, size: int) -> nn.Module:
        """The layers behind c4 and global average pooling; they halve the size."""
        expanding = self.features[14].get_submodule("conv")
        assert isinstance(expanding, nn.Sequential)
        deep = nn.Sequential(expanding[1:], self.features[15:], nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.expand4 = expanding[0]
        self.features = self.features[:14]
        self.info = self.info[:-1]
        return deep

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c3, x = self._expand(7, self.features[:7](x))
        if len(self.info) == 2:
            return {"c3": c3, "c4": self.expand4(self.features[8:14](x))}
        c4, x = self._expand(14, self.features[8:14](x))
        return {"c3": c3, "c4": c4, "c5": self.features[15:](x)}

    def _expand(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Run one strided block; return its expanded tensor and its output."""
        layers = self.features[block].get_submodule("conv")
        assert isinstance(layers, nn.Sequential)
        expanded = layers[0](x)
        return expanded, layers[1:](expanded)
