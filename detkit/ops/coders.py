"""Boxes as offsets from reference boxes, what a network regresses (R-CNN, appendix C; SSD, equation 2)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

# The largest growth that a decoded side may have over its reference: 1000 / 16 (a reference of 16 pixels in an image
# of 1000), as commonly done. Beyond it exp() of an untrained network overflows.
MAX_LOG_SCALE = math.log(1000 / 16)
# Sides are at least this many pixels when they are divided by or enter a logarithm.
MIN_SIDE = 1e-6


class BoxCoder:
    """Encodes boxes as (wx dx, wy dy, ww dw, wh dh) against references.

    dx, dy: shift of the centre in units of the reference's sides; dw, dh: logarithm of the ratio of sides.
    `weights` (wx, wy, ww, wh) bring the four to one scale; SSD's variances .1, .1, .2, .2 are weights 10, 10, 5, 5.

        >>> coder, anchor = BoxCoder((1, 1, 1, 1)), torch.tensor([[0.0, 0, 10, 10]])
        >>> coder.encode(torch.tensor([[5.0, 0, 15, 10]]), anchor)  # half a side to the right
        tensor([[0.5000, 0.0000, 0.0000, 0.0000]])
        >>> coder.decode(torch.tensor([[0.5, 0, 0, 0]]), anchor)
        tensor([[ 5.,  0., 15., 10.]])
    """

    def __init__(self, weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0)) -> None:
        if len(weights) != 4:
            raise ValueError(f"BoxCoder.weights: expected 4 numbers, got {len(weights)}")
        self.weights = tuple(float(weight) for weight in weights)

    def encode(self, boxes: Tensor, refs: Tensor) -> Tensor:
        """Return deltas (..., 4) that take `refs` to `boxes`, both (..., 4) xyxy, broadcast against each other.

        Always finite for finite boxes: sides below MIN_SIDE count as that.
        """
        centre, sides = xyxy_to_cxcywh(boxes).split(2, -1)
        ref_centre, ref_sides = xyxy_to_cxcywh(refs).split(2, -1)
        sides, ref_sides = sides.clamp(min=MIN_SIDE), ref_sides.clamp(min=MIN_SIDE)
        shift = (centre - ref_centre) / ref_sides
        parts = (*shift.unbind(-1), *(sides / ref_sides).log().unbind(-1))
        # numbers, not a tensor of them: that would be copied from the host at every call
        return torch.stack([part * weight for part, weight in zip(parts, self.weights)], -1)

    def decode(self, deltas: Tensor, refs: Tensor) -> Tensor:
        """Return boxes (..., 4) xyxy from deltas (..., 4) and references (..., 4) that broadcast against them.

        dw and dh are cut to at most MAX_LOG_SCALE, so sides stay finite.
        """
        ref_centre, ref_sides = xyxy_to_cxcywh(refs).split(2, -1)
        parts = deltas.to(ref_sides.dtype).unbind(-1)
        shift, growth = torch.stack([part / weight for part, weight in zip(parts, self.weights)], -1).split(2, -1)
        centre = shift * ref_sides + ref_centre
        return cxcywh_to_xyxy(torch.cat((centre, growth.clamp(max=MAX_LOG_SCALE).exp() * ref_sides), -1))
