"""Guided backpropagation (Springenberg et al., 2015).

Captum's sees modules of type ReLU alone, and would return the plain gradient of MobileNetV2, whose rectifier is ReLU6.
"""

import torch
from torch import Tensor, nn

from detkit.inside.network import Network
from detkit.inside.rectify import check_rectifiers, rectified
from detkit.inside.scores import Asked


def guided_backpropagation(network: Network, asked: Asked) -> Tensor:
    """Return what comes back to the pixels, (3, h, w), where only positive signals pass the rectifiers.

    UserError for a network whose rectifiers are neither ReLU nor ReLU6.
    """
    whole = network.body if network.detector is None else network.detector
    check_rectifiers(network, whole, "guided backpropagation", (nn.ReLU, nn.ReLU6))
    pixels = asked.pixels.clone().requires_grad_()
    with rectified(whole, "guided"):
        score = asked.score(pixels).sum()
    return torch.autograd.grad(score, pixels)[0][0]
