"""The names of the backbones."""

from collections.abc import Callable

from detkit.backbones.base import Backbone
from detkit.backbones.timm_models import PREFIX, Timm
from detkit.registry import Registry

BACKBONES: Registry[Callable[[], Backbone]] = Registry("backbone")


def build(name: str) -> Backbone:
    """Return a new network of a name in BACKBONES, or `timm/NAME`; UserError for an unknown one."""
    return Timm(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else BACKBONES.get(name)()
