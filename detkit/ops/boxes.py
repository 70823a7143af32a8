"""Box arithmetic.

Boxes are continuous `xyxy` in pixels, (..., 4): x to the right, y down, a pixel spans [x, x + 1), so that a width is
x2 - x1. Results are float32 (float64 for float64 boxes) whatever autocast is on.
"""

import torch
from torch import Tensor


def _real(boxes: Tensor) -> Tensor:
    """Float32 for halves and integers, since a half has no room for pixel coordinates; float64 stays."""
    return boxes if boxes.dtype == torch.float64 else boxes.float()


def area(boxes: Tensor) -> Tensor:
    """Return the areas (...) of boxes (..., 4) in square pixels; 0 where x2 < x1 or y2 < y1."""
    sides = (_real(boxes)[..., 2:] - _real(boxes)[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU (..., M, N) in [0, 1] of each of `a` (..., M, 4) with each of `b` (..., N, 4).

    Leading dimensions broadcast. Boxes without area have IoU 0 with every box, themselves included.
    """
    a, b = _real(a), _real(b)
    # Each coordinate apart, and contiguous: four (M, N) operands in place of (M, N, 2) ones vectorise several times
    # better. Adding the areas before the loss of a buffer keeps the live (M, N) matrices at three.
    ax1, ay1, ax2, ay2 = a.unsqueeze(-2).unbind(-1)
    bx1, by1, bx2, by2 = b.unsqueeze(-3).movedim(-1, 0).contiguous().unbind(0)
    overlap = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).relu_()
    overlap = overlap.mul_(torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).relu_())
    # an area of at least the smallest normal number makes the union positive: 0 / 0 becomes 0
    tiny = torch.finfo(a.dtype).tiny
    union = (area(a).clamp(min=tiny).unsqueeze(-1) + area(b).unsqueeze(-2)).sub_(overlap)
    return overlap.div_(union)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners (x1, y1, x2, y2) -> centre and sides (cx, cy, w, h), (..., 4)."""
    low, high = _real(boxes).split(2, -1)
    return torch.cat(((low + high) * 0.5, high - low), -1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and sides (cx, cy, w, h) -> corners (x1, y1, x2, y2), (..., 4)."""
    centre, sides = _real(boxes).split(2, -1)
    return torch.cat((centre - sides * 0.5, centre + sides * 0.5), -1)


def _per_image(values: Tensor, boxes: Tensor) -> Tensor:
    """(B, 2) as (y, x) -> (B, 1, ..., 1, 4) as (x, y, x, y), to meet boxes (B, ..., 4)."""
    values = values.to(boxes.device, boxes.dtype).flip(-1)
    values = torch.cat((values, values), -1)
    return values.view(*values.shape[:-1], *[1] * (boxes.ndim - values.ndim), 4)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Cut boxes (B, ..., 4) to their images; sizes: (B, 2), height and width in pixels. (2,) serves one image."""
    boxes = _real(boxes)
    return torch.minimum(boxes.clamp(min=0), _per_image(sizes, boxes))


def scale(boxes: Tensor, factors: Tensor) -> Tensor:
    """Multiply boxes (B, ..., 4) by their image's factors (B, 2), vertical then horizontal, as sizes are given."""
    boxes = _real(boxes)
    return boxes * _per_image(factors, boxes)


def flip(boxes: Tensor, width: Tensor | float) -> Tensor:
    """Mirror boxes (B, ..., 4) left to right in images of `width` pixels: a number, or one an image (B,)."""
    boxes = _real(boxes)
    x1, y1, x2, y2 = boxes.unbind(-1)
    if isinstance(width, Tensor):
        width = width.to(boxes.device, boxes.dtype)
        width = width.view(*width.shape, *[1] * (x1.ndim - width.ndim))
    return torch.stack((width - x2, y1, width - x1, y2), -1)
