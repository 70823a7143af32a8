"""Image pyramids: an image at several sizes, and each region pooled at the one that suits it (SPPNet, section 4.1)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.errors import UserError
from detkit.ops import rescale, short_side_scale, sppnet_scale


class ImagePyramid(NamedTuple):
    """maps: of each scale its map (B, C, h, w), and its factor for each image, (B,); sizes: (B, 2) of the images."""

    maps: list[tuple[Tensor, Tensor]]
    sizes: Tensor


def image_pyramid(
    network: Callable[[Tensor], Tensor],
    pixels: Tensor,
    sizes: Tensor,
    scales: Sequence[float] | Sequence[Tensor],
    longest: float = float("inf"),
) -> ImagePyramid:
    """Run `network` on images at each of `scales`.

    pixels: (B, 3, H, W), normalised; sizes: (B, 2), height and width of each image in it; scales: short sides in
    pixels, one number or one for each image, (B,); longest: at most so many pixels for the long side.
    """
    maps = []
    for short in scales:  # no batch: the levels of a pyramid differ in size
        factor = short_side_scale(sizes, short, longest)
        maps.append((network(rescale(pixels, sizes, factor)), factor))
    return ImagePyramid(maps, sizes)


def pool_from(
    pyramid: ImagePyramid,
    boxes: Tensor,
    scales: Sequence[float],
    pool: Callable[[Tensor, Tensor, Tensor | None], Tensor],
) -> Tensor:
    """Pool each region from the scale at which its area is closest to 224 x 224 pixels.

    boxes: (B, R, 4) in pixels of the images; scales: short sides of the pyramid's levels. pool: takes a map, boxes in
    pixels of its scale, and which of them are valid, (B, R) or None for all; gives 0 for the others.
    """
    if len(pyramid.maps) == 1:
        x, factor = pyramid.maps[0]
        return pool(x, boxes * factor.view(-1, 1, 1), None)
    level = sppnet_scale(boxes, pyramid.sizes, scales)
    pooled = [
        pool(x, boxes * factor.view(-1, 1, 1), level == number) for number, (x, factor) in enumerate(pyramid.maps)
    ]
    return torch.stack(pooled).sum(0)


def check_scales(scales: Sequence[int]) -> None:
    """Raise UserError where `model.scales` are not short sides."""
    if not scales or min(scales) < 1:
        raise UserError(f"model.scales: {list(scales)} is not a list of short sides in pixels")
