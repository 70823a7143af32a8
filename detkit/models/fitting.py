"""Whether a configured size suits a network, without computing a value; what doesn't is one line that says what does."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from detkit.errors import UserError

STEP = 16  # pixels between the sizes that are tried for one that fits
MOST = 1024


@torch.no_grad()
def output_of(module: nn.Module, *shape: int) -> Any:
    """Return what a network makes of an input of this shape, as tensors without values; RuntimeError if it can't."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    training = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        empty = {name: tensor.to("meta") for name, tensor in tensors.items()}
        return functional_call(module, empty, (torch.empty(shape, device="meta"),))
    finally:
        for layer, mode in training.items():
            layer.training = mode


def check_pixels(backbone: nn.Module, key: str, side: int, fits: Callable[[Any], bool] = bool) -> None:
    """Raise UserError where pictures of side x side are too small for a backbone, or its maps do not fit.

    key: of the config, beneath `model`. fits: whether these maps will do.
    """
    if _works(backbone, side, fits):
        return
    larger = range(side // STEP * STEP + STEP, MOST + 1, STEP)
    enough = next((each for each in larger if _works(backbone, each, fits)), None)
    hint = f"; {enough} are enough" if enough else ""
    raise UserError(f"model.{key}: {side} pixels a side are too few for {type(backbone).__name__}{hint}")


def tail_width(tail: nn.Module, channels: int, size: int) -> int:
    """Return how many features a tail gives for a region's map (channels, size, size); UserError if it can't read it."""
    try:
        return output_of(tail, 1, channels, size, size).shape[1]
    except RuntimeError:
        for larger in range(size + 1, 4 * size + 16):
            try:
                output_of(tail, 1, channels, larger, larger)
            except RuntimeError:
                continue
            raise UserError(
                f"model.pool_size: {size} cells a side are too few for the backbone's tail; it reads {larger} or more"
            ) from None
        raise


def _works(backbone: nn.Module, side: int, fits: Callable[[Any], bool]) -> bool:
    try:
        return fits(output_of(backbone, 1, 3, side, side))
    except RuntimeError:
        return False
