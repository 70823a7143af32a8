"""VGG (Simonyan and Zisserman, 2015): as region detectors use it, and as SSD does.

Where the side of a map is odd, pools keep its last row and column, as in Caffe: 600 x 800 pixels become 38 x 50 cells.
So the maps are torchvision's where sides are multiples of 16, and have a row or column more for some other sides.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torchvision import models

from detkit.backbones.base import Backbone, FeatureInfo, rename_layers
from detkit.backbones.classic import ClassicBackbone
from detkit.backbones.registry import BACKBONES
from detkit.backbones.vgg_files import REDUCED, torchvision_keys

# torchvision's `features` of VGG16 up to and with the last ReLU in front of a pool
CONV4_3, POOL5 = 23, 30
STARTS = 0, 5, 10, 17, 24  # behind each pool
# fc6 sees 7x7 of 512 channels, fc7 1x1 of 4096; every 4th unit and every 3rd pixel are kept
KEEP_UNITS, KEEP_PIXELS = 4, 3


def round_up(features: nn.Module) -> None:
    """Let pools keep a last odd row and column, as Caffe's do and torchvision's do not: 75 x 75 -> 38 x 38."""
    for layer in features.modules():
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True


class VGG(ClassicBackbone):
    """The convolutions, without pool5. Features: the last of conv3 (stride 4), conv4 (8), conv5 (16). Tail: fc6, fc7.

    They are called conv3_3, conv4_3 and conv5_3 in VGG16, with 2 behind the _ in VGG11 and VGG13, and 4 in VGG19.
    """

    first_cell_centre = 8.0
    tail_size = 7

    def __init__(self, name: str) -> None:
        body: Any = models.get_model(name, weights=None)
        pools = [number for number, layer in enumerate(body.features) if isinstance(layer, nn.MaxPool2d)]
        round_up(body.features)
        last = sum(isinstance(layer, nn.Conv2d) for layer in body.features[pools[3] : pools[4]])
        starts = (0, *(pool + 1 for pool in pools[:-1]))
        super().__init__(body.features[: pools[4]], body.classifier[:6], pools[2:], starts)
        names = [f"conv{block}_{last}" for block in (3, 4, 5)]
        self.info = tuple(FeatureInfo(*each) for each in zip(names, (256, 512, 512), (4, 8, 16)))
        self.imagenet = f"{name.upper()}_Weights.IMAGENET1K_V1"
        self.region = names[-1]
        if not any(isinstance(layer, nn.BatchNorm2d) for layer in self.features):
            self.l2norm_features = tuple(names[:-1])

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return super().convert(torchvision_keys(state, self.features))


for _depth in (11, 13, 16, 19):
    for _name in (f"vgg{_depth}", f"vgg{_depth}_bn"):
        BACKBONES.register(_name)(partial(VGG, _name))


@BACKBONES.register("vgg16_reduced")
class ReducedVGG16(Backbone):
    """VGG16 whose fc6 and fc7 are convolutions, subsampled from the ImageNet classifier (SSD paper, section 3).

    pool5 is 3x3 with stride 1, fc6 is dilated by 6 to see what it saw before. Features: conv4_3 (stride 8), fc7 (16).
    """

    info = (FeatureInfo("conv4_3", 512, 8), FeatureInfo("fc7", 1024, 16))
    imagenet = "VGG16_Weights.IMAGENET1K_V1"
    l2norm_features = ("conv4_3",)
    region = "fc7"
    first_cell_centre = 8.0

    def __init__(self) -> None:
        super().__init__()
        features = models.vgg16(weights=None).features
        assert isinstance(features, nn.Sequential)
        self.features = features[:POOL5]
        round_up(self.features)
        self.pool5 = nn.MaxPool2d(3, 1, 1)
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=6, dilation=6)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        for layer in (self.fc6, self.fc7):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def layer_groups(self) -> list[nn.Module]:
        stages: list[nn.Module] = [self.features[start:stop] for start, stop in zip(STARTS, (*STARTS[1:], POOL5))]
        if len(self.info) == 1:
            return stages[:-1]
        return [*stages[:-1], nn.ModuleList([stages[-1], self.fc6, self.fc7])]

    def truncate(self, name: str) -> None:
        super().truncate(name)
        if name == "conv4_3":
            self.features = self.features[:CONV4_3]
            del self.pool5, self.fc6, self.fc7

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        conv4_3 = self.features[:CONV4_3](x)
        if len(self.info) == 1:
            return {"conv4_3": conv4_3}
        x = self.pool5(self.features[CONV4_3:](conv4_3))
        x = self.fc6(x).relu_()
        return {"conv4_3": conv4_3, "fc7": self.fc7(x).relu_()}

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        state = rename_layers(torchvision_keys(state, self.features), REDUCED)
        layers = {"classifier.0": ("fc6", (-1, 512, 7, 7)), "classifier.3": ("fc7", (-1, 4096, 1, 1))}
        for theirs, (ours, shape) in layers.items():
            weight, bias = state.pop(f"{theirs}.weight", None), state.pop(f"{theirs}.bias", None)
            # published feature-only files (converted from Caffe) fill the classifier with NaN
            if weight is None or bias is None or weight.isnan().any():
                continue
            kernel = weight.view(shape)[::KEEP_UNITS, :, ::KEEP_PIXELS, ::KEEP_PIXELS]
            # fc7 reads the units of fc6 that are left
            state[f"{ours}.weight"] = kernel if ours == "fc6" else kernel[:, ::KEEP_UNITS]
            state[f"{ours}.bias"] = bias[::KEEP_UNITS]
        return state
