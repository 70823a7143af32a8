"""Network in Network (Lin et al., 2014), the authors' ImageNet network."""

from torch import nn

from detkit.backbones.base import FeatureInfo, initialise
from detkit.backbones.classic import SequentialBackbone
from detkit.backbones.registry import BACKBONES


def _mlpconv(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """A convolution and two layers of a perceptron at each cell (section 3.1)."""
    return nn.Sequential(
        *(nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU(inplace=True)),
        *(nn.Conv2d(outputs, outputs, 1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(outputs, outputs, 1), nn.ReLU(inplace=True)),
    )


def _pool() -> nn.MaxPool2d:
    return nn.MaxPool2d(3, 2, ceil_mode=True)  # as Caffe rounds


@BACKBONES.register("nin")
class NIN(SequentialBackbone):
    """Four mlpconv layers. Features: mlpconv2 (stride 8), mlpconv3 (16), mlpconv4 (32).

    The last 1x1 convolution gives the scores of ImageNet's classes, and is left out.
    """

    info = (FeatureInfo("mlpconv2", 256, 8), FeatureInfo("mlpconv3", 384, 16), FeatureInfo("mlpconv4", 1024, 32))
    region = "mlpconv3"
    first_cell_centre = 17.5  # conv1 and the pools are unpadded

    def __init__(self) -> None:
        features = nn.Sequential(
            *(_mlpconv(3, 96, 11, 4), _pool()),
            *(_mlpconv(96, 256, 5, padding=2), _pool()),
            *(_mlpconv(256, 384, 3, padding=1), _pool(), nn.Dropout()),
            _mlpconv(384, 1024, 3, padding=1)[:4],
        )
        super().__init__(features, (3, 5, 8), (0, 2, 4, 7))
        initialise(self)  # not the authors' .01 and .05, from which twelve layers start slowly
