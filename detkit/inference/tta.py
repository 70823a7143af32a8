"""Test-time augmentation: the network sees each image several times, and one NMS sees all of its boxes.

Predictions are brought back to the pixels of the usual input before they are joined, so that scores stay what the
network said: an object that is detected in several views keeps its best score, as one detected twice in a view.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detkit.config import DetectConfig
from detkit.errors import UserError
from detkit.models import Detector
from detkit.ops import flip, scale
from detkit.structures import Images, Predictions


def predict_views(detector: Detector, images: Images, settings: DetectConfig) -> Predictions:
    """Return what a detector predicts of the views that `settings.flip` and `settings.scales` name, joined.

    boxes (B, sum of A, ...) are in pixels of `images`. features are those of the view that is the images as they are
    where it is among them, else of the first. Raises UserError as `check_scales` does.
    """
    check_scales(detector, settings)
    directions = (False, True) if settings.flip else (False,)
    views = [(mirrored, factor) for mirrored in directions for factor in settings.scales]
    parts = [_predict_view(detector, images, mirrored, factor) for mirrored, factor in views]
    if len(parts) == 1:
        return parts[0]
    boxes = torch.cat([part.boxes for part in parts], 1)
    scores = torch.cat([part.scores for part in parts], 1)
    unchanged = views.index((False, 1.0)) if (False, 1.0) in views else 0
    return Predictions(boxes, scores, parts[unchanged].features)


def _predict_view(detector: Detector, images: Images, mirrored: bool, factor: float) -> Predictions:
    """Predict on one view; boxes are brought back to the pixels of `images`."""
    view, factors = resize_views(detector, mirror(images) if mirrored else images, factor)
    predictions = detector.predict(view)
    if factor != 1:
        predictions = _unscaled(predictions, factors, images.sizes)
    if mirrored:
        predictions = replace(predictions, boxes=flip(predictions.boxes, images.sizes[:, 1]))
    return predictions


def check_scales(detector: Detector, settings: DetectConfig) -> None:
    """Raise UserError where the network cannot take a scale, or has other NMS inside."""
    for key, value in (detector.fixed_nms or {}).items():
        asked = getattr(settings, key)
        if settings.nms != "hard" or (asked < value if key == "score_threshold" else asked != value):
            raise UserError(
                f"detect.{key}={value:g} and hard NMS are inside the exported file; for others export it without --nms"
            )
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
    proposals = images.proposals
    if proposals is not None:
        boxes = torch.where(proposals.valid.unsqueeze(-1), flip(proposals.boxes, images.sizes[:, 1]), 0)
        proposals = replace(proposals, boxes=boxes)
    return replace(images, pixels=_laid_out_as(pixels, images.pixels), proposals=proposals)


def resize_views(detector: Detector, images: Images, factor: float) -> tuple[Images, Tensor]:
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
    proposals = images.proposals
    if proposals is not None:
        proposals = replace(proposals, boxes=scale(proposals.boxes, exact))
    return replace(images, pixels=_laid_out_as(pixels, images.pixels), sizes=sizes, proposals=proposals), exact


def _unscaled(predictions: Predictions, factors: Tensor, sizes: Tensor) -> Predictions:
    """Bring boxes back; those centred beyond the image, on what fills up the network's input, are no objects."""
    boxes = scale(predictions.boxes, 1 / factors)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    limit = sizes.flip(-1).view(len(sizes), *[1] * (centre.ndim - 2), 2)
    inside = (centre < limit).all(-1)
    inside = inside.unsqueeze(-1) if inside.ndim == 2 else inside
    return replace(predictions, boxes=boxes, scores=predictions.scores.masked_fill(~inside, -torch.inf))


def _laid_out_as(pixels: Tensor, other: Tensor) -> Tensor:
    """Give pixels the memory format of `other`."""
    last = other.is_contiguous(memory_format=torch.channels_last) and not other.is_contiguous()
    return pixels.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
