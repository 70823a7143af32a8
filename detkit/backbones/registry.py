"""The names of the backbones."""

from collections.abc import Callable

from detkit.backbones.base import Backbone
from detkit.registry import Registry

BACKBONES: Registry[Callable[[], Backbone]] = Registry("backbone")
