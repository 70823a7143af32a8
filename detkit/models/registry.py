"""The names of the detectors."""

from detkit.models.base import Detector
from detkit.registry import Registry

MODELS: Registry[type[Detector]] = Registry("model")
