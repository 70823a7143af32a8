"""Occlusion (Zeiler and Fergus, 2014, section 4.2, figure 7): how much a score drops where a grey square hides it."""

import torch

from detkit.inside.library import captum
from detkit.inside.network import Network
from detkit.inside.scores import Asked

AT_ONCE = 8  # squares


def occlusion(network: Network, asked: Asked, size: int | None = None, stride: int | None = None) -> torch.Tensor:
    """Return the mean drop of the score, (h, w), over the grey squares that hide each pixel.

    size: pixels a side of the square, by default a sixth of the image's shorter side; stride: between squares, by
    default half of that. The grey is the mean that the network's input is normalised by.
    """
    height, width = asked.pixels.shape[-2:]
    size = size or max(2, min(height, width) // 6)
    stride = stride or max(1, size // 2)
    grey = asked.pixels.new_tensor(network.input.mean).view(1, 3, 1, 1) * network.input.divisor
    with torch.no_grad():
        drops = (
            captum()
            .Occlusion(asked.score)
            .attribute(
                asked.pixels,
                sliding_window_shapes=(3, size, size),
                strides=(3, stride, stride),
                baselines=grey.expand_as(asked.pixels),
                perturbations_per_eval=AT_ONCE,
            )
        )
    return drops[0, 0]
