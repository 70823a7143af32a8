"""Networks that turn an image into feature maps, by name."""

from detkit.backbones import (  # noqa: F401 (importing a family's file registers its names)
    alexnet,
    darknet,
    darknet19,
    darknet53,
    efficientnet_lite,
    inception,
    mobilenet,
    nin,
    resnet,
    squeezenet,
    tiny,
    vgg,
    zfnet,
)
from detkit.backbones.base import Backbone, FeatureInfo, fully_connected
from detkit.backbones.classic import SequentialBackbone
from detkit.backbones.describe import BackboneSummary, describe_backbone
from detkit.backbones.registry import BACKBONES, build
from detkit.backbones.weights import load_weights
from detkit.config import BackboneConfig

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneSummary",
    "FeatureInfo",
    "SequentialBackbone",
    "create_backbone",
    "describe_backbone",
    "fully_connected",
    "list_backbones",
    "load_weights",
]


def create_backbone(config: BackboneConfig, *, tail: bool = False) -> Backbone:
    """Build a backbone and load its weights; UserError for an unknown name or a file that doesn't fit.

    config: its name is one of `list_backbones()`, or `timm/NAME` where timm is installed.
    tail: whether the layers stay that only `Backbone.tail` uses.
    """
    backbone = build(config.name)
    if config.weights is not None:
        load_weights(backbone, config.weights, config.channels)
    if not tail:
        backbone.drop_tail()
    return backbone


def list_backbones(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, such as `res*`; those of timm (`timm/NAME`) are not among them."""
    return BACKBONES.names(pattern)
