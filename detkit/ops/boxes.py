"""Box arithmetic.

Boxes are continuous `xyxy` in pixels, (..., 4): x to the right, y down, a pixel spans [x, x + 1), so that a width is
x2 - x1. Results are float32 (float64 for float64 boxes) whatever autocast is on.
"""

import torch
from torch import Tensor

CPU_PAIRS = 1 << 17  # pairs of boxes that box_iou compares at once on each thread: three matrices of half a MiB


def as_float(boxes: Tensor) -> Tensor:
    """Float32 for halves and integers, since a half has no room for pixel coordinates; float64 stays."""
    return boxes if boxes.dtype == torch.float64 else boxes.float()


def area(boxes: Tensor) -> Tensor:
    """Return the areas (...) of boxes (..., 4) in square pixels; 0 where x2 < x1 or y2 < y1."""
    sides = (as_float(boxes)[..., 2:] - as_float(boxes)[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


@torch.no_grad()
def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU (..., M, N) in [0, 1] of each of `a` (..., M, 4) with each of `b` (..., N, 4).

        >>> one, others = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 2, 1], [5.0, 5, 6, 6]])
        >>> box_iou(one, others)
        tensor([[0.5000, 0.0000]])

    Leading dimensions broadcast. Boxes without area have IoU 0 with every box, themselves included. For matching and
    suppression: carries no gradient.
    """
    a, b = as_float(a), as_float(b)
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(dtype), b.to(dtype)
    lead = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    result = torch.empty(*lead, a.shape[-2], b.shape[-2], dtype=dtype, device=a.device)
    if b.shape[:-2].numel() == 1:  # every box of `a` meets the same `b`: one long matrix
        a, b = a.expand(*lead, *a.shape[-2:]).reshape(1, -1, 4), b.reshape(1, -1, 4)
    else:
        a, b = (boxes.expand(*lead, *boxes.shape[-2:]).flatten(0, -3) for boxes in (a, b))
    out = result.view(len(a), a.shape[1], b.shape[1])
    # Each coordinate apart, and contiguous: operands (M, 1) and (1, N) vectorise far better than (M, N, 2).
    # An area of at least the smallest normal number makes the union positive: 0 / 0 becomes 0.
    a_area = area(a).clamp_(min=torch.finfo(dtype).tiny)
    a_terms = torch.cat((a.movedim(-1, 0), a_area.unsqueeze(0))).unsqueeze(-1)
    b_terms = torch.cat((b.movedim(-1, 0), area(b).unsqueeze(0))).unsqueeze(-2)

    # On a CPU the dozen passes over a matrix of pairs are bound by memory, and fresh memory costs page faults: loops
    # over pieces that fit the cache, with two buffers used again and again, halve the time. On a GPU it is one piece.
    pairs = CPU_PAIRS * torch.get_num_threads() if out.device.type == "cpu" else max(1, out.numel())
    rows = max(1, pairs // max(1, out.shape[2]))  # of one matrix
    matrices = max(1, rows // max(1, out.shape[1]))
    buffers = out.new_empty(2, min(rows, out.shape[1]) * min(matrices, out.shape[0]) * out.shape[2]).unbind(0)
    for a_part, b_part, out_part in zip(a_terms.split(matrices, 1), b_terms.split(matrices, 1), out.split(matrices)):
        bx1, by1, bx2, by2, b_area = b_part.unbind(0)
        for a_rows, iou in zip(a_part.split(rows, 2), out_part.split(rows, 1)):
            ax1, ay1, ax2, ay2, a_area = a_rows.unbind(0)
            height, scratch = (buffer[: iou.numel()].view(iou.shape) for buffer in buffers)
            width = torch.minimum(ax2, bx2, out=iou)
            width.sub_(torch.maximum(ax1, bx1, out=scratch)).relu_()
            torch.minimum(ay2, by2, out=height)
            height.sub_(torch.maximum(ay1, by1, out=scratch)).relu_()
            shared = width.mul_(height)  # in the memory of `iou`, as is the width
            union = torch.add(a_area, b_area, out=scratch).sub_(shared)
            shared.div_(union)
    return result


@torch.no_grad()
def paired_iou(
    a: Tensor, b: Tensor, *, areas: tuple[Tensor, Tensor] | None = None, crowd: Tensor | None = None
) -> Tensor:
    """Return the IoU (N,) of each box of `a` (N, 4) with the box of `b` (N, 4) in the same row; 0 where they are apart.

    areas: those of `a` and of `b`, (N,) each, by default computed from the boxes. crowd: (N,) bool, where `b` is a
    crowd; there it is the share of `a` that lies in `b`, as in pycocotools. Coordinates are read one after the other:
    the transpose of (4, N) is fastest.
    """
    ax1, ay1, ax2, ay2 = as_float(a).unbind(-1)
    bx1, by1, bx2, by2 = as_float(b).unbind(-1)
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    shared = width * height
    if areas is None:
        areas = (ax2 - ax1) * (ay2 - ay1), (bx2 - bx1) * (by2 - by1)
    a_area, b_area = areas
    union = a_area + b_area - shared
    if crowd is not None:
        union = torch.where(crowd, a_area, union)
    return torch.where(shared > 0, shared / union, 0.0)


def gather_boxes(boxes: Tensor, index: Tensor) -> Tensor:
    """Return the boxes (B, K, 4) at `index` (B, K) int64 of boxes (B, N, 4).

    Of images without boxes (N = 0) they are 0, so that padded indices may point anywhere.
    """
    if boxes.shape[1] == 0:
        return boxes.new_zeros(*index.shape, 4)
    return boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Corners (x1, y1, x2, y2) -> centre and sides (cx, cy, w, h), (..., 4)."""
    low, high = as_float(boxes).split(2, -1)
    return torch.cat(((low + high) * 0.5, high - low), -1)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Centre and sides (cx, cy, w, h) -> corners (x1, y1, x2, y2), (..., 4)."""
    centre, sides = as_float(boxes).split(2, -1)
    return torch.cat((centre - sides * 0.5, centre + sides * 0.5), -1)


def _per_image(values: Tensor, boxes: Tensor) -> Tensor:
    """(B, 2) as (y, x) -> (B, 1, ..., 1, 4) as (x, y, x, y), to meet boxes (B, ..., 4)."""
    values = values.to(boxes.device, boxes.dtype).flip(-1)
    values = torch.cat((values, values), -1)
    return values.view(*values.shape[:-1], *[1] * (boxes.ndim - values.ndim), 4)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Cut boxes (B, ..., 4) to their images; sizes: (B, 2), height and width in pixels. (2,) serves one image."""
    boxes = as_float(boxes)
    return torch.minimum(boxes.clamp(min=0), _per_image(sizes, boxes))


def scale(boxes: Tensor, factors: Tensor) -> Tensor:
    """Multiply boxes (B, ..., 4) by their image's factors (B, 2), vertical then horizontal, as sizes are given."""
    boxes = as_float(boxes)
    return boxes * _per_image(factors, boxes)


def flip(boxes: Tensor, width: Tensor | float) -> Tensor:
    """Mirror boxes (B, ..., 4) left to right in images of `width` pixels: a number, or one an image (B,)."""
    boxes = as_float(boxes)
    x1, y1, x2, y2 = boxes.unbind(-1)
    if isinstance(width, Tensor):
        width = width.to(boxes.device, boxes.dtype)
        width = width.view(*width.shape, *[1] * (x1.ndim - width.ndim))
    return torch.stack((width - x2, y1, width - x1, y2), -1)
