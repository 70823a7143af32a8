"""Layers that training leaves as they are."""

from collections.abc import Iterable

from torch import nn


def freeze(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Stop gradients to the modules' parameters; return the norms among them, which must stay in evaluation mode."""
    norms = []
    for module in modules:
        module.requires_grad_(False)
        norms += norm_layers(module)
    return norms


def norm_layers(module: nn.Module) -> list[nn.Module]:
    """Return the batch norms in a module: one that is frozen keeps its statistics, too."""
    return [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
