"""What a detector is."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from detkit.structures import Images, InputSpec, Predictions, Targets


@dataclass(frozen=True)
class SGD:
    """A stage of a detector's training: gradient descent on its losses, by the config's `train` section."""

    name: str = "sgd"


class Detector(nn.Module):
    """A network with its losses and its decoding; every detector trains, evaluates and detects through these methods.

    config_type: the dataclass of its config. classes: the names behind labels 0..C-1. input: how images must arrive.
    """

    config_type: ClassVar[type]
    classes: tuple[str, ...]
    input: InputSpec
    backbone: nn.Module

    def __init__(self, config: Any, classes: tuple[str, ...], spec: InputSpec) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.input = spec
        # buffers, so that normalising on a GPU copies nothing from the host
        mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
        self.register_buffer("_shift", mean * spec.divisor, persistent=False)
        self.register_buffer("_scale", 1 / (std * spec.divisor), persistent=False)

    def normalise(self, images: Images) -> Tensor:
        """(B, 3, H, W) uint8 -> float32: (value / divisor - mean) / std."""
        return (images.pixels - self._shift) * self._scale

    def forward(self, images: Images, targets: Targets | None = None) -> dict[str, Tensor] | Predictions:
        """Losses where targets are given, else predictions: one entry, so that DDP sees every pass."""
        return self.predict(images) if targets is None else self.losses(images, targets)

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """Return named scalar losses, weighted; their sum is what training minimises."""
        raise NotImplementedError

    def predict(self, images: Images) -> Predictions:
        """Return decoded boxes and scores, before NMS."""
        raise NotImplementedError

    def stages(self) -> list[SGD]:
        """Return the training stages in order."""
        return [SGD()]
