"""What can be known of a backbone without its values: size, arithmetic, maps, weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_weight

from detkit.backbones.base import Backbone, FeatureInfo
from detkit.backbones.registry import build
from detkit.backbones.weights import Source, find_source
from detkit.errors import UserError

SIZE = 224  # pixels a side, of most networks for ImageNet


@dataclass(frozen=True)
class BackboneSummary:
    """A backbone, for people.

    parameters: without the layers that only the tails of region heads use; with_tail: with them. size: pixels a side of
    the image that flops counts for; flops: floating-point operations of the maps of one image, multiplications and
    additions each. features: its maps, finest first. region: the map that region heads pool from. weights: its
    published ImageNet weights.
    """

    name: str
    parameters: int
    with_tail: int
    size: int
    flops: int
    features: tuple[FeatureInfo, ...]
    region: str
    weights: Source | None


def describe_backbone(name: str, size: int | None = None) -> BackboneSummary:
    """Describe a backbone; nothing is downloaded, and no memory is taken.

    name: one of `list_backbones()`, or `timm/NAME`. size: pixels a side of the image; None is what its published
    weights were trained on, else 224. Raises UserError for an unknown name, and an image that is too small.
    """
    with torch.device("meta"):
        backbone = build(name)
    with_tail = count_parameters(backbone)
    backbone.drop_tail()
    backbone.eval()
    side = trained_size(backbone) if size is None else size
    try:
        flops = count_flops(lambda: backbone(torch.empty(1, 3, side, side, device="meta")))
    except RuntimeError:
        raise UserError(f"{name}: an image of {side} pixels a side is too small for it") from None
    parameters, weights = count_parameters(backbone), find_source(backbone)
    return BackboneSummary(name, parameters, with_tail, side, flops, backbone.info, backbone.region, weights)


def trained_size(backbone: Backbone) -> int:
    """Return the pixels a side of the images that the ImageNet weights were trained on; 224 where there are none."""
    if backbone.imagenet is None:
        return SIZE
    (side,) = get_weight(backbone.imagenet).transforms().crop_size
    return side


def count_parameters(module: nn.Module) -> int:
    """Return how many numbers a network learns."""
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def count_flops(run: Callable[[], Any]) -> int:
    """Return the floating-point operations of the convolutions and matrix products of a call.

    A multiplication and the addition behind it are two; all else is left out, as is usual.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
