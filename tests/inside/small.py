"""Small networks and images to look into."""

import numpy as np
import torch
from torch import nn

from detkit.inside import Asked, Network
from detkit.structures import InputSpec


class Fire(nn.Module):
    """Two rectified convolutions of one map, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large, self.relu = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 3, padding=1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.relu(self.small(x)), self.relu(self.large(x))), 1)


def body(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True), Fire())
    return nn.Sequential(*layers, *extra)


def network(*extra: nn.Module, classes: tuple[str, ...] = (), side: int = 24) -> Network:
    return Network("small", body(*extra), InputSpec((side, side)), classes)


def classifier(side: int = 24) -> Network:
    head = (nn.Conv2d(6, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return network(*head, classes=("a", "b", "c"), side=side)


def image(side: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def asked(whole: Network, index: int = 1) -> Asked:
    pixels = whole.pixels(image(*whole.side[:1]))
    return Asked("b", image(), pixels, lambda changed: whole.run(changed)[:, index])
