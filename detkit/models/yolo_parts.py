"""What YOLOv2 and YOLOv3 share beside places: checks of configs, training on images of many sizes, and a trace."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.errors import UserError
from detkit.models.trace import AnchorChoiceStep, AnchorStep
from detkit.ops import BACKGROUND, PlaceMatch
from detkit.structures import Targets


def check_convolutions(key: str, specs: Sequence[Sequence[int]]) -> None:
    """Raise UserError where a layer is not [channels, odd kernel, 1]. key: of the config, beneath `model`."""
    for spec in specs:
        if len(spec) != 3 or min(spec) < 1 or spec[1] % 2 == 0 or spec[2] != 1:
            raise UserError(f"model.{key}: {spec} is not [channels, odd kernel, 1]")


def check_anchors(anchors: Sequence[Sequence[float]]) -> None:
    """Raise UserError where anchors are no pairs."""
    if not anchors or any(len(anchor) != 2 for anchor in anchors):
        raise UserError(f"model.anchors: {anchors} is not a list of [width, height]")


def check_train_sizes(train_sizes: Sequence[int]) -> None:
    """Raise UserError unless these are a least and a largest size, or none."""
    if train_sizes and (len(train_sizes) != 2 or train_sizes[0] > train_sizes[1]):
        raise UserError(f"model.train_sizes: {train_sizes} is not [least, largest]")


def sizes_between(train_sizes: Sequence[int], size: int, stride: int) -> list[int]:
    """Return the sides of the input in training, smallest first; `size` alone where `train_sizes` is empty.

    stride: of the coarsest map; UserError where it does not divide them.
    """
    if not train_sizes:
        return [size]
    sides = range(train_sizes[0], train_sizes[1] + 1, stride)
    if sides[-1] != train_sizes[1] or sides[0] % stride:
        raise UserError(f"model.train_sizes: {train_sizes} are not multiples of the map's stride, {stride}")
    return list(sides)


def at_random_size(pixels: Tensor, targets: Targets, sides: Sequence[int]) -> tuple[Tensor, Targets]:
    """Resize a batch (B, 3, side, side), and its objects, to one of `sides` (YOLO9000, section 2)."""
    if len(sides) == 1:
        return pixels, targets
    side = sides[int(torch.randint(len(sides), ()))]  # on the host: no sync
    factor = side / pixels.shape[-1]
    pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
    return pixels, replace(targets, boxes=targets.boxes * factor)


def pool_same(x: Tensor) -> Tensor:
    """A 2x2 max pool of stride 1 that keeps a map's sides, as in Tiny YOLO: the last windows are cut off."""
    return F.max_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 1)


def anchor_choice(
    match: PlaceMatch, targets: Targets, anchors: Tensor, slots: Tensor, laid: AnchorStep, ignore_iou: float
) -> AnchorChoiceStep:
    """Return which anchors (K, 2) answer for the objects of one image; slots: (M, K), see AnchorMap."""
    sides = targets.boxes[0, :, 2:] - targets.boxes[0, :, :2]
    left_out = (match.index[0] == BACKGROUND) & (match.iou[0] > ignore_iou)
    boxes, place = torch.cat(laid.boxes), match.place[0]
    return AnchorChoiceStep(anchors, slots >= 0, sides, place, boxes, left_out, ignore_iou, laid.maps)
