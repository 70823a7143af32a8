"""Invariance (Zeiler and Fergus, 2014, section 4.1 and figure 5): how far features move as the image is changed."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, affine

from detkit.inside.network import Network

POINTS = 13  # of each curve
SHIFT = 0.25  # of the input's height, up and down
SCALE = 1.8
AT_ONCE = 8


@dataclass(frozen=True)
class Curve:
    """change: what was done, with its unit. amounts: (N,). distances: of each layer (N,), of the unchanged features'
    length."""

    change: str
    amounts: np.ndarray
    distances: dict[str, np.ndarray]


def invariance(network: Network, pixels: Tensor, layers: list[str]) -> list[Curve]:
    """Shift, scale and turn an image (1, 3, h, w), 0 to 255; return how far each layer's features move.

    A distance is Euclidean, divided by the length of the unchanged image's features. What comes in from outside of the
    image is the mean that the input is normalised by.
    """
    for layer in layers:
        network.check(layer)
    height = pixels.shape[-2]
    most = round(SHIFT * height)
    changes = {
        "shift down (pixels)": [(0.0, shift, 1.0, shift) for shift in np.linspace(-most, most, POINTS).round()],
        "scale": [(0.0, 0, scale, scale) for scale in np.linspace(1, SCALE, POINTS)],
        "rotation (degrees)": [(angle, 0, 1.0, angle) for angle in np.linspace(0, 360, POINTS)],
    }
    fill = [mean * network.input.divisor for mean in network.input.mean]
    before = {name: maps.flatten(1) for name, maps in _features(network, [pixels], layers).items()}
    curves = []
    for change, steps in changes.items():
        changed = [
            affine(pixels, angle, [0, int(shift)], scale, [0.0, 0.0], InterpolationMode.BILINEAR, fill)
            for angle, shift, scale, _ in steps
        ]
        after = _features(network, changed, layers)
        distances = {
            name: ((after[name].flatten(1) - row).norm(dim=1) / row.norm().clamp(min=1e-12)).cpu().numpy()
            for name, row in before.items()
        }
        curves.append(Curve(change, np.array([step[-1] for step in steps]), distances))
    return curves


@torch.no_grad()
def _features(network: Network, images: list[Tensor], layers: list[str]) -> dict[str, Tensor]:
    parts = [network.record(torch.cat(images[at : at + AT_ONCE]), layers) for at in range(0, len(images), AT_ONCE)]
    return {name: torch.cat([part[name] for part in parts]) for name in layers}
