"""Checks that a configured size suits a network, by empty batches; a UserError says which size would do."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from detkit.errors import UserError

STEP = 16  # pixels between the sizes that are tried for one that fits
MAX_SIDE = 1024


@torch.no_grad()
def output_of(module: nn.Module, *shape: int) -> Any:
    """Return what a network makes of a batch of none of this shape; RuntimeError where it can't read such a shape."""
    training = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        return module(torch.empty(0, *shape))
    finally:
        for layer, mode in training.items():
            layer.training = mode


def check_pixels(backbone: nn.Module, key: str, side: int, network: nn.Module | None = None) -> None:
    """Raise UserError where images of side x side are too small for a backbone.

    key: of the config, beneath `model`. network: the backbone with what follows it, where that wants larger ones.
    """
    network = backbone if network is None else network
    if _reads(network, 3, side):
        return
    larger_sides = range(side // STEP * STEP + STEP, MAX_SIDE + 1, STEP)
    enough = next((larger for larger in larger_sides if _reads(network, 3, larger)), None)
    hint = f"; {enough} are enough" if enough else ""
    raise UserError(f"model.{key}: {side} pixels a side are too few for {type(backbone).__name__}{hint}")


def tail_width(tail: nn.Module, shape: Sequence[int]) -> int:
    """Return how many features a tail gives for what is pooled of a region, of this shape.

    UserError for maps (channels, size, size) that it can't read.
    """
    try:
        return output_of(tail, *shape).shape[1]
    except RuntimeError:
        channels, size, _ = shape
        enough = next((larger for larger in range(size + 1, 4 * size + 16) if _reads(tail, channels, larger)), None)
        if enough is None:
            raise
    raise UserError(
        f"model.pool_size: {size} cells a side are too few for the backbone's tail; it reads {enough} or more"
    )


def _reads(network: nn.Module, channels: int, side: int) -> bool:
    """Whether a network can read maps of side x side."""
    try:
        output_of(network, channels, side, side)
    except RuntimeError:
        return False
    return True
