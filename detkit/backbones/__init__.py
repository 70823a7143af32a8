"""Networks that turn an image into feature maps, by name."""

from detkit.backbones import darknet, mobilenet, resnet, tiny, vgg
from detkit.backbones.base import Backbone, FeatureInfo, fully_connected
from detkit.backbones.registry import BACKBONES
from detkit.backbones.weights import load_weights
from detkit.config import BackboneConfig

__all__ = [
    "BACKBONES",
    "Backbone",
    "FeatureInfo",
    "create_backbone",
    "fully_connected",
    "list_backbones",
    "load_weights",
]

# importing a family's file registers its names
FAMILIES = (darknet, mobilenet, resnet, tiny, vgg)


def create_backbone(config: BackboneConfig, *, tail: bool = False) -> Backbone:
    """Build a backbone and load its weights; UserError for an unknown name or a file that doesn't fit.

    tail: whether the layers stay that only `Backbone.tail` uses.
    """
    backbone = BACKBONES.get(config.name)()
    if config.weights is not None:
        load_weights(backbone, config.weights)
    if not tail:
        backbone.drop_tail()
    return backbone


def list_backbones(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, such as `res*`."""
    return BACKBONES.names(pattern)
