"""L-BFGS directions for many small problems at once."""

from typing import NamedTuple

import torch
from torch import Tensor

MEMORY = 25  # pairs kept


class Pair(NamedTuple):
    """A step (K, D), the gradient's change along it (K, D), and 1 / (step . change) (K, 1), 0 to leave it out."""

    step: Tensor
    change: Tensor
    inverse: Tensor


class LBFGS:
    """What past steps told about the curvature of K objectives, one in each row (Nocedal & Wright, algorithm 7.4).

    For objectives that are 1-strongly convex, such as any with a term |w|^2 / 2. A pair which no such function can
    have, since the objective was exchanged in between, is left out.
    """

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.last: tuple[Tensor, Tensor] | None = None
        self.scale: Tensor | None = None

    def direction(self, point: Tensor, gradient: Tensor) -> Tensor:
        """Note a new point (K, D) and the gradient there; return the direction (K, D) to go from it, which descends."""
        if self.scale is None:
            self.scale = torch.ones_like(point[:, :1])
        if self.last is not None:
            last_point, last_gradient = self.last
            step, change = point - last_point, gradient - last_gradient
            product = (step * change).sum(1, keepdim=True)
            sound = product > 0.5 * step.square().sum(1, keepdim=True)
            self.pairs = [*self.pairs, Pair(step, change, torch.where(sound, 1 / product, 0))][-MEMORY:]
            self.scale = torch.where(sound, product / change.square().sum(1, keepdim=True), self.scale)
        self.last = point, gradient

        # the two loops of algorithm 7.4: down from the newest pair, and up again
        result, weights = -gradient, []
        for step, change, inverse in reversed(self.pairs):
            weights.append(inverse * (step * result).sum(1, keepdim=True))
            result = result - weights[-1] * change
        result = result * self.scale
        for (step, change, inverse), weight in zip(self.pairs, reversed(weights)):
            result = result + (weight - inverse * (change * result).sum(1, keepdim=True)) * step
        descends = (result * gradient).sum(1, keepdim=True) < 0
        return torch.where(descends, result, -gradient)
