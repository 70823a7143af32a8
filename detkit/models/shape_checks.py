"""Checks that a configured size suits a network, by empty batches; a UserError says which size would do."""

from collections.abc import Callable
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


def check_pixels(backbone: nn.Module, key: str, side: int, fits: Callable[[Any], bool] = bool) -> None:
    """Raise UserError where images of side x side are too small for a backbone, or its maps do not fit.

    key: of the config, beneath `model`. fits: whether these maps will do.
    """
    if _works(backbone, side, fits):
        return
    larger_sides = range(side // STEP * STEP + STEP, MAX_SIDE + 1, STEP)
    enough = next((larger for larger in larger_sides if _works(backbone, larger, fits)), None)
    hint = f"; {enough} are enough" if enough else ""
    raise UserError(f"model.{key}: {side} pixels a side are too few for {type(backbone).__name__}{hint}")


def tail_width(tail: nn.Module, channels: int, size: int) -> int:
    """Return how many features a tail gives for maps (channels, size, size); UserError if it can't read them."""
    try:
        return output_of(tail, channels, size, size).shape[1]
    except RuntimeError:
        for larger in range(size + 1, 4 * size + 16):
            try:
                output_of(tail, channels, larger, larger)
            except RuntimeError:
                continue
            raise UserError(
                f"model.pool_size: {size} cells a side are too few for the backbone's tail; it reads {larger} or more"
            ) from None
        raise


def _works(backbone: nn.Module, side: int, fits: Callable[[Any], bool]) -> bool:
    try:
        return fits(output_of(backbone, 3, side, side))
    except RuntimeError:
        return False
