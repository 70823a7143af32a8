"""Deconvnet (Zeiler and Fergus, 2014, section 2.1): what of the pixels made a unit respond, projected back to them.

Backwards through the network: max pooling is undone by its switches, each value goes where the maximum was; rectifiers
rectify the signal that comes back; convolutions are applied transposed. That is the gradient but for the rectifiers
(Simonyan et al., 2014, section 4), so that autograd computes it, through fire modules' concatenations, too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detkit.errors import UserError
from detkit.inside.network import Network
from detkit.inside.rectify import check_rectifiers, rectified


def check_deconvnet(network: Network) -> None:
    """Raise UserError, which says what there is and what works, for a network without max pooling or ReLU."""
    kinds = {type(module).__name__ for module in network.body.modules() if not [*module.children()]}
    if not any(isinstance(module, nn.MaxPool2d) for module in network.body.modules()):
        raise UserError(
            f"deconvnet needs max pooling, whose switches it unpools by, and {network.name} has "
            f"{', '.join(sorted(kinds))}; guided backpropagation works"
        )
    check_rectifiers(network, network.body, "deconvnet", (nn.ReLU,))


def deconvnet(network: Network, layer: str, pixels: Tensor, unit: int, cells: Sequence[Sequence[int]]) -> Tensor:
    """Return the projection (B, 3, h, w) of a unit's value at one cell, (row, column), of each image.

    pixels: (B, 3, h, w), 0 to 255. All other values of the layer are set to 0. In units of the normalised input.
    UserError for an unknown layer or unit, and see `check_deconvnet`.
    """
    check_deconvnet(network)
    network.check(layer, unit)
    seen = network.normalise(pixels).requires_grad_()
    with rectified(network.body, "deconvnet"):
        maps = network.record_seen(seen, [layer])
    rows, columns = torch.tensor(cells, device=seen.device).T
    values = maps[layer][torch.arange(len(pixels), device=seen.device), unit, rows, columns]
    # the signal that starts is the value itself, rectified as all that goes back
    return torch.autograd.grad(values, seen, values.detach().clamp(min=0))[0]
