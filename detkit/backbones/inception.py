"""GoogLeNet (Szegedy et al., 2015) and Inception v3 (Szegedy et al., 2016): from torchvision.

Their published weights were trained on images between -1 and 1, into which the first layer brings those that are
normalised as for all other backbones.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models import googlenet, inception_v3

from detkit.backbones.base import FeatureInfo
from detkit.backbones.classic import SequentialBackbone
from detkit.backbones.registry import BACKBONES
from detkit.structures import InputSpec


class ToUnitRange(nn.Module):
    """Images normalised by ImageNet's mean and deviation -> by .5 and .5: the range -1 to 1 of Google's networks."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor(InputSpec.mean).view(3, 1, 1), torch.tensor(InputSpec.std).view(3, 1, 1)
        self.register_buffer("scale", std / 0.5, persistent=False)
        self.register_buffer("shift", (mean - 0.5) / 0.5, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Inception(SequentialBackbone):
    """A row of torchvision's layers under their names; the auxiliary classifiers are left out."""

    def __init__(self, body: nn.Module, starts: tuple[str, ...]) -> None:
        last = self.info[-1].name
        layers: OrderedDict[str, nn.Module] = OrderedDict(range=ToUnitRange())
        for name, layer in body.named_children():
            if name not in ("aux1", "aux2", "AuxLogits"):
                layers[name] = layer
            if name == last:
                break
        names = list(layers)
        ends = [names.index(info.name) + 1 for info in self.info]
        super().__init__(nn.Sequential(layers), ends, (0, *(names.index(name) for name in starts)))

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {name for name, _ in self.features.named_children()}
        return {f"features.{key}" if key.split(".")[0] in names else key: tensor for key, tensor in state.items()}


@BACKBONES.register("googlenet")
class GoogLeNet(Inception):
    """Inception v1 with batch norm, as torchvision has it, whose "5x5" branches are 3x3 as in the published weights.

    Features: inception3b (stride 8), inception4e (16), inception5b (32).
    """

    info = (
        FeatureInfo("inception3b", 480, 8),
        FeatureInfo("inception4e", 832, 16),
        FeatureInfo("inception5b", 1024, 32),
    )
    imagenet = "GoogLeNet_Weights.IMAGENET1K_V1"
    region = "inception4e"
    first_cell_centre = 14.5  # the pools are unpadded

    def __init__(self) -> None:
        body = googlenet(weights=None, aux_logits=False, init_weights=False)
        super().__init__(body, ("conv2", "inception3a", "inception4a", "inception5a"))


@BACKBONES.register("inception_v3")
class InceptionV3(Inception):
    """Features: Mixed_5d (stride 8), Mixed_6e (16), Mixed_7c (32). Images need 75 pixels a side."""

    info = (FeatureInfo("Mixed_5d", 288, 8), FeatureInfo("Mixed_6e", 768, 16), FeatureInfo("Mixed_7c", 2048, 32))
    imagenet = "Inception_V3_Weights.IMAGENET1K_V1"
    region = "Mixed_6e"
    first_cell_centre = 21.5  # the strided layers and some others are unpadded

    def __init__(self) -> None:
        body = inception_v3(weights=None, aux_logits=False, init_weights=False)
        super().__init__(body, ("Conv2d_3b_1x1", "Mixed_5b", "Mixed_6a", "Mixed_7a"))
