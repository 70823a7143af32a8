"""The running average of a detector's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

D = TypeVar("D", bound=nn.Module)


class ModelEMA(Generic[D]):
    """Exponential moving average of all weights and buffers, kept in `self.detector`.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that a short run does not remember its random start.
    Integer buffers (counters) are copied.
    """

    def __init__(self, detector: D, decay: float) -> None:
        self.detector = copy.deepcopy(detector).eval().requires_grad_(False)
        self.decay = decay
        pairs = list(zip(self.detector.state_dict().values(), detector.state_dict().values()))
        # state_dict's tensors share memory with the modules, and all updates and loads are in place
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, iteration: int) -> None:
        """Move towards the detector's weights after step number `iteration` (0-based)."""
        decay = min(self.decay, (1 + iteration) / (10 + iteration))
        average: list[Tensor] = [pair[0] for pair in self._floats]
        torch._foreach_lerp_(average, [pair[1] for pair in self._floats], 1 - decay)
        for old, new in self._others:
            old.copy_(new)
