"""Grad-CAM (Selvaraju et al., 2017): a layer's maps, weighted by how much a score rises with each."""

import torch
from torch import Tensor

from detkit.errors import UserError
from detkit.inside.library import captum
from detkit.inside.network import Network, as_maps, watched
from detkit.inside.scores import Asked


def grad_cam(network: Network, asked: Asked, layer: str | None = None) -> tuple[Tensor, str]:
    """Return the heat (rows, columns) of a layer's cells, 0 where the score does not rise, and the layer's name.

    layer: by default the last one of several cells that the score depends on. UserError where it does not depend on
    the layer, as a detection of SSD's first map does not on deeper ones.
    """
    used = _used(network, asked)
    if layer is None:
        layer = next(reversed([name for name, cells in used.items() if cells > 1]), None)
        if layer is None:
            raise UserError(f"Grad-CAM: no layer of {network.name} has several cells that the score depends on")
    elif network.check(layer) not in used:
        raise UserError(
            f"Grad-CAM: {asked.title} does not depend on {layer}, of {network.name} on {', '.join(used) or 'none'}"
        )
    method = captum().LayerGradCam(asked.score, network.module(layer))
    return method.attribute(asked.pixels, relu_attributions=True)[0, 0].detach(), layer


def _used(network: Network, asked: Asked) -> dict[str, int]:
    """The layers that a score depends on, with the number of their cells."""
    maps: dict[str, Tensor] = {}
    pixels = asked.pixels.clone().requires_grad_()
    with watched(network.body, [*network.shapes], lambda name, output: maps.update({name: as_maps(output)})):
        score = asked.score(pixels)
    gradients = torch.autograd.grad(score.sum(), [*maps.values()], allow_unused=True)
    depends = {name for name, gradient in zip(maps, gradients) if gradient is not None}
    # the maps of the classes' own scores are no features
    own = len(network.classes) if network.detector is None else 0
    return {
        name: maps[name].shape[-2:].numel() for name in network.layers if name in depends and maps[name].shape[1] != own
    }
