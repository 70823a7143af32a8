"""ZF-5 (Zeiler and Fergus, 2014, figure 3), the fast network of SPPNet and Faster R-CNN."""

from torch import Tensor, nn
from torch.nn import functional as F

from detkit.backbones.base import FeatureInfo, initialise, rename_layers
from detkit.backbones.classic import ClassicBackbone
from detkit.backbones.registry import BACKBONES

# the layers of Caffe's files
CAFFE = {
    **{f"conv{number}": f"features.{layer}" for number, layer in enumerate((0, 4, 8, 10, 12), 1)},
    "fc6": "classifier.0",
    "fc7": "classifier.3",
}


class ResponseNorm(nn.Module):
    """Divide each value by (1 + alpha * the mean square of the 3 x 3 around it in its channel) ** beta.

    The constants are those of SPPNet's and Faster R-CNN's ZF networks.
    """

    alpha, beta = 5e-5, 0.75

    def forward(self, x: Tensor) -> Tensor:
        # squares overflow half precision
        energy = F.avg_pool2d(x.float().square(), 3, 1, 1)
        return (x.float() * (1 + self.alpha * energy) ** -self.beta).to(x.dtype)


@BACKBONES.register("zfnet")
class ZFNet(ClassicBackbone):
    """The five convolutions, without pool5. Feature: conv5 (stride 16). Tail: fc6, fc7.

    Padded as in Faster R-CNN's code, so that maps are not smaller than the image: all layers by half their kernel. In
    SPPNet's code conv1 is padded by 1, conv2 and the pools by nothing, which puts cell 0 at 20.5; the weights have the
    same shapes. A `.caffemodel` of either is read.
    """

    info = (FeatureInfo("conv5", 256, 16),)
    region = "conv5"
    tail_size = 6

    def __init__(self) -> None:
        features = nn.Sequential(
            *(nn.Conv2d(3, 96, 7, 2, 3), nn.ReLU(inplace=True), ResponseNorm()),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),  # as Caffe rounds
            *(nn.Conv2d(96, 256, 5, 2, 2), nn.ReLU(inplace=True), ResponseNorm()),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            *(nn.Conv2d(256, 384, 3, 1, 1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 384, 3, 1, 1), nn.ReLU(inplace=True)),
            *(nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(inplace=True)),
        )
        classifier = nn.Sequential(
            *(nn.Linear(256 * 6 * 6, 4096), nn.ReLU(inplace=True), nn.Dropout()),
            *(nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout()),
        )
        super().__init__(features, classifier, (len(features),), (0, 4, 8))
        initialise(self)  # not the paper's .01 throughout, from which five layers start slowly

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return super().convert(rename_layers(state, CAFFE))
