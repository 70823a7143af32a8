"""Saliency (Simonyan et al., 2014, section 3): how much a score changes with each pixel."""

import torch

from detkit.inside.library import captum
from detkit.inside.scores import Asked


def saliency(asked: Asked) -> torch.Tensor:
    """Return the absolute gradient of a score, the largest of each pixel's channels, (h, w)."""
    return captum().Saliency(asked.score).attribute(asked.pixels.clone().requires_grad_())[0].detach().amax(0)
