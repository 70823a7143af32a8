"""Regions cut from images and warped to one size: the input of R-CNN's network."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPORARY = 128 << 20  # bytes that crop_warp uses beside its result


def crops_per_chunk(size: int, memory: int = 256 << 20) -> int:
    """Return how many crops of `size` x `size` fit in `memory` bytes as float32 with three channels; at least 1.

    crop_warp bounds what it uses itself, but its result grows with the boxes: 2000 crops of 227 x 227 are 1.2 GB. To
    pass that many through a network, give it `boxes.split(crops_per_chunk(size), 1)` one after the other.
    """
    return max(1, memory // (3 * size * size * 4))


def crop_warp(
    images: Tensor,
    boxes: Tensor,
    size: int = 227,
    context: int = 16,
    fill: Sequence[float] = (122.7717, 115.9465, 102.9801),
    sizes: Tensor | None = None,
) -> Tensor:
    """Return (B, R, 3, size, size) float32: each box with its surroundings, stretched to a square (R-CNN, section 2.1
    and appendix A, and the authors' code).

    images: (B, 3, H, W), uint8 or float; boxes: (B, R, 4) xyxy in pixels; sizes: (B, 2), height and width of each
    image's valid part, or None where images are not padded. fill: what lies outside the image, in the scale and channel
    order of the images: their mean, so that it is 0 once that is subtracted.

    The box is enlarged about its centre by size / (size - 2 * context), so that `context` pixels around it are seen at
    the target scale; its edges are rounded to pixels, halves away from zero, both included, and cut to the image. What
    remains is resized bilinearly without antialiasing to its share of the square, edge pixels repeated. A box that
    misses the image is all fill, and so is one of NaN.
    """
    if images.ndim != 4 or boxes.ndim != 3 or boxes.shape[-1] != 4 or len(boxes) != len(images):
        raise ValueError(
            f"crop_warp: expected images (B, 3, H, W) and boxes (B, R, 4), got {tuple(images.shape)} and "
            f"{tuple(boxes.shape)}"
        )
    if not 0 <= 2 * context < size:
        raise ValueError(f"crop_warp: context {context} leaves nothing of a crop of {size} pixels")
    images = images.float()
    boxes = boxes.double()  # as the authors' code: products fall on halves
    batch, count = boxes.shape[:2]
    channels, height, width = images.shape[1:]
    limits = boxes.new_tensor([[height, width]]) if sizes is None else sizes.to(boxes)
    window = _window(boxes, size, context, limits)

    out = images.new_empty(batch, count, channels, size, size)
    blank = images.new_tensor(tuple(fill)).view(-1, 1, 1)
    pixel = images.new_tensor([2 / width, 2 / height])  # in grid_sample's coordinates
    # by pieces, since the grid and the samples of all boxes would be as large as the result again
    boxes_a_piece = max(1, TEMPORARY // (max(1, batch) * (channels + 3) * size * size * 4))
    for begin in range(0, count, boxes_a_piece):
        piece = slice(begin, begin + boxes_a_piece)
        source, inside = _sources(window[:, :, piece].float(), size)
        # where nothing is seen, the corner stands in for infinities and NaN
        position = torch.where(inside, (source + 0.5) * pixel - 1, -1)
        x, y = position.unbind(-1)
        shape = (*x.shape, size)
        grid = torch.stack((x.unsqueeze(2).expand(shape), y.unsqueeze(3).expand(shape)), -1)
        samples = F.grid_sample(images, grid.flatten(1, 2), padding_mode="border", align_corners=False)
        samples = samples.unflatten(2, (-1, size)).transpose(1, 2)  # (B, r, 3, size, size)
        x_inside, y_inside = inside.unbind(-1)
        seen = x_inside.unsqueeze(2) & y_inside.unsqueeze(3)
        out[:, piece] = torch.where(seen.unsqueeze(2), samples, blank)
    return out


def _window(boxes: Tensor, size: int, context: int, limits: Tensor) -> Tensor:
    """Return what of each enlarged box lies in the image, and where in the crop: (4, B, R, 2) float64, (x, y) last.

    The four: the first and the last pixel of the image that are seen; the crop's pixel at which they start, and how
    many of its pixels they fill. boxes: (B, R, 4) float64; limits: (B, 2) or (1, 2), height and width.
    """
    low, high = boxes.split(2, -1)
    centre = (low + high) / 2
    half = (high - low) / 2 * (size / (size - 2 * context))
    # rounded as 1-based pixels, since halves away from zero depend on where zero is
    low = _round(centre - half + 1) - 1
    high = _round(centre + half + 1) - 1
    extent = high - low + 1
    # crop pixels an image pixel; a true quotient, where torch's `size / extent` takes a rounded reciprocal
    ratio = torch.full_like(extent, size) / extent
    first = low.clamp(min=0)
    last = torch.minimum(high, limits.flip(-1).unsqueeze(1) - 1)
    start = _round((first - low) * ratio)
    length = torch.minimum(_round((last - first + 1) * ratio), size - start)
    return torch.stack((first, last, start, length))


def _sources(window: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the image's coordinate under each crop pixel, and whether it is in the window: (B, r, size, 2), (x, y).

    window: (4, B, r, 2) of `_window`. A coordinate is where to sample along one axis, whatever the other.
    """
    first, last, start, length = window.unsqueeze(-2).unbind(0)
    crop_pixel = torch.arange(size, device=window.device, dtype=window.dtype).unsqueeze(-1)  # (size, 1)
    offset = crop_pixel - start
    inside = (offset >= 0) & (offset < length)
    source = first + (offset + 0.5) * ((last - first + 1) / length) - 0.5
    return source.maximum(first).minimum(last), inside


def _round(values: Tensor) -> Tensor:
    """To the nearest integer, halves away from zero, as MATLAB's and C's round do."""
    return values.sign() * (values.abs() + 0.5).floor()
