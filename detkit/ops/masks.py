"""Masks of objects: packed for the way to the device, cut to regions for the loss, pasted into images."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from detkit.ops.boxes import as_float
from detkit.ops.roi import roi_align

BITS = 8
THRESHOLD = 0.5  # Mask R-CNN, section 3.1: of the probability that a pixel is the object's
PIXELS = 1 << 25  # of masks that are pasted at once


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """Masks (N, H, W), 0 or 1 -> (N, H + 1, ceil((W + 1) / 8)) uint8, eight pixels a byte, the leftmost its highest.

    The last row and column are there twice: RoIAlign of a mask without borders, in a batch that is padded with 0.
    """
    return np.packbits(np.pad(masks, ((0, 0), (0, 1), (0, 1)), "edge"), axis=2)


def unpack_masks(packed: Tensor) -> Tensor:
    """(..., H, bytes) uint8 of `pack_masks` -> (..., H, 8 * bytes) uint8, 0 or 1."""
    shift = torch.arange(BITS - 1, -1, -1, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1).bitwise_right_shift(shift) & 1).flatten(-2)


def mask_targets(packed: Tensor, boxes: Tensor, index: Tensor, size: int) -> Tensor:
    """Cut objects' masks to regions: (B, R, size, size) float32, what Mask R-CNN's mask head is to learn of each.

    packed: (B, N, h, bytes), see `pack_masks`. boxes: (B, R, 4) regions in pixels; index: (B, R) int64, the object of
    each, whose mask RoIAlign resamples with as many samples a bin as it has pixels, as torchvision does.
    """
    batch, objects = packed.shape[:2]
    masks = unpack_masks(packed).flatten(0, 1).unsqueeze(1).float()
    rows = index + objects * torch.arange(batch, device=index.device).unsqueeze(1)
    regions = torch.cat((rows.unsqueeze(-1).to(boxes), boxes), -1).flatten(0, 1)
    return roi_align(masks, regions, size, 1, sampling=0, aligned=False).view(*index.shape, size, size)


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample the masks of boxes to an image's pixels: (N, H, W), 0 outside the boxes.

    masks: (N, M, M) probabilities, boxes: (N, 4) in pixels of the image of `size` (height, width). As Detectron and
    torchvision do: a mask gets a border of 0, its box grows by as much and to whole pixels, and what lies between is
    bilinear, with `align_corners` off.
    """
    height, width = size
    side = masks.shape[-1] + 2
    boxes = as_float(boxes)
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * (side / (side - 2))
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    low, high = (centre - half).long(), (centre + half).long()
    masks = pad(as_float(masks), (1, 1, 1, 1))
    # each axis by itself: what every pixel takes of every cell, so that two products of matrices paste all masks
    columns, rows = (_weights(low[:, axis], high[:, axis], side, (width, height)[axis]) for axis in (0, 1))
    return rows.to(masks) @ masks @ columns.to(masks).transpose(1, 2)


def object_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (N, M, M) of boxes (N, 4) -> (N, H, W) bool, the pixels of an image that are the objects'.

    (Mask R-CNN, section 3.1.) See `paste_masks`, of which as many are computed at once as fit in memory.
    """
    step = max(1, PIXELS // max(1, size[0] * size[1]))
    parts = [boxes.new_zeros(0, *size, dtype=torch.bool)]
    for part, of in zip(masks.split(step), boxes.split(step)):
        parts.append(paste_masks(part, of, size) > THRESHOLD)
    return torch.cat(parts)


def _weights(low: Tensor, high: Tensor, cells: int, pixels: int) -> Tensor:
    """(N, pixels, cells): the share of each cell in each pixel, where the cells lie on the pixels low to high (N,)."""
    length = (high - low + 1).clamp(min=1).unsqueeze(1)
    offset = torch.arange(pixels, device=low.device) - low.unsqueeze(1)
    source = ((offset + 0.5) * (cells / length.float()) - 0.5).clamp(min=0)
    first = source.floor().clamp(max=cells - 1)
    share = source - first
    inside = (offset >= 0) & (offset < length)
    weights = source.new_zeros(len(low), pixels, cells)
    weights.scatter_(2, first.long().unsqueeze(2), ((1 - share) * inside).unsqueeze(2))
    second = (first + 1).clamp(max=cells - 1).long()
    return weights.scatter_add_(2, second.unsqueeze(2), (share * inside).unsqueeze(2))
