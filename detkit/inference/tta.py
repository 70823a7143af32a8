"""Test-time augmentation: the network sees each image several times, and one NMS sees all that it found.

Predictions are brought back to the pixels of the usual input before they are joined, so that scores stay what the
network said: a box found in several views keeps its best score, as a box found twice in one.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detkit.config import DetectConfig
from detkit.errors import UserError
from detkit.ops import flip, scale
from detkit.structures import Images, Predictions

if TYPE_CHECKING:
    from detkit.models import Detector


def predict_views(detector: "Detector", images: Images, settings: DetectConfig) -> Predictions:
    """Return what a detector predicts of the views that `settings.flip` and `settings.scales` name, joined: (B, sum of
    A, ...), in pixels of `images`. UserError as `check_scales`."""
    check_scales(detector, settings)
    parts = []
    for mirrored in (False, True) if settings.flip else (False,):
        for factor in settings.scales:
            seen = mirror(images) if mirrored else images
            seen, factors = resize_views(detector, seen, factor)
            found = detector.predict(seen)
            if factor != 1:
                found = _unscaled(found, factors, images.sizes)
            if mirrored:
                found = replace(found, boxes=flip(found.boxes, images.sizes[:, 1]))
            parts.append(found)
    if len(parts) == 1:
        return parts[0]
    return Predictions(torch.cat([part.boxes for part in parts], 1), torch.cat([part.scores for part in parts], 1))


def check_scales(detector: "Detector", settings: DetectConfig) -> None:
    """Raise UserError where the network cannot take a scale."""
    largest = max(settings.scales)
    if detector.input.resize == "stretch" and largest > 1:
        raise UserError(
            f"scale {largest:g} is above 1, but this network takes images of {detector.input} alone; "
            "those that keep the aspect ratio, such as faster_rcnn, take larger ones"
        )


def mirror(images: Images) -> Images:
    """Mirror the valid part of each image, and its proposals, left to right."""
    column = torch.arange(images.pixels.shape[-1], device=images.pixels.device)
    width = images.sizes[:, 1:]
    source = torch.where(column < width, width - 1 - column, column)
    pixels = images.pixels.gather(3, source[:, None, None].expand_as(images.pixels))
    given = images.proposals
    if given is not None:
        boxes = torch.where(given.valid.unsqueeze(-1), flip(given.boxes, images.sizes[:, 1]), 0)
        given = replace(given, boxes=boxes)
    return replace(images, pixels=_laid_out_as(pixels, images.pixels), proposals=given)


def resize_views(detector: "Detector", images: Images, factor: float) -> tuple[Images, Tensor]:
    """Resize images, and their proposals, by a factor; return them and the exact factors (B, 2), vertical first.

    A network of one input size gets the smaller image at the upper left of its input, the rest in its mean colour.
    """
    height, width = images.pixels.shape[-2:]
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    exact = torch.tensor([size[0] / height, size[1] / width], device=images.pixels.device).expand(len(images), 2)
    if factor == 1:
        return images, exact
    fixed = detector.input.resize == "stretch"
    pixels = interpolate(images.pixels.float(), size, mode="bilinear", antialias=factor < 1)
    pixels = pixels.round_().clamp_(0, 255).to(torch.uint8)
    if fixed:
        mean = [round(channel * detector.input.divisor) for channel in detector.input.mean]
        canvas = images.pixels.new_tensor(mean).view(1, 3, 1, 1).repeat(len(images), 1, height, width)
        canvas[..., : size[0], : size[1]] = pixels
        pixels, sizes = canvas, images.sizes
    else:
        sizes = (images.sizes * exact).ceil().long()
    given = images.proposals
    if given is not None:
        given = replace(given, boxes=scale(given.boxes, exact))
    return replace(images, pixels=_laid_out_as(pixels, images.pixels), sizes=sizes, proposals=given), exact


def _unscaled(found: Predictions, factors: Tensor, sizes: Tensor) -> Predictions:
    """Bring boxes back; those centred beyond the image, on what fills up the network's input, are no objects."""
    boxes = scale(found.boxes, 1 / factors)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    limit = sizes.flip(-1).view(len(sizes), *[1] * (centre.ndim - 2), 2)
    inside = (centre < limit).all(-1)
    inside = inside.unsqueeze(-1) if inside.ndim == 2 else inside
    return Predictions(boxes, found.scores.masked_fill(~inside, -torch.inf))


def _laid_out_as(pixels: Tensor, other: Tensor) -> Tensor:
    """Give pixels the memory format of `other`."""
    last = other.is_contiguous(memory_format=torch.channels_last) and not other.is_contiguous()
    return pixels.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
