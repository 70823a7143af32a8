"""The detectors, one file a paper."""

from typing import Any

# importing a file registers its names
from detkit.models import (  # noqa: F401
    fast_rcnn,
    faster_rcnn,
    mask_rcnn,
    rcnn,
    retinanet,
    rfcn,
    sppnet,
    ssd,
    torchvision_ssd,
    yolov1,
    yolov2,
    yolov3,
)
from detkit.models.base import SGD, Detector, Stage, StageRun, Thresholds
from detkit.models.compress import restructure
from detkit.models.dense import DenseDetector
from detkit.models.postprocess import postprocess
from detkit.models.region import RegionDetector
from detkit.models.registry import MODELS

__all__ = [
    "MODELS",
    "SGD",
    "DenseDetector",
    "Detector",
    "RegionDetector",
    "Stage",
    "StageRun",
    "Thresholds",
    "build_detector",
    "list_models",
    "model_config_type",
    "postprocess",
]


def model_config_type(name: str) -> type:
    """Return the dataclass of a model's config; UserError for an unknown name."""
    return MODELS.get(name).config_type


def build_detector(config: Any, classes: tuple[str, ...]) -> Detector:
    detector = MODELS.get(config.name)(config, classes)  # pyright: ignore[reportCallIssue]
    if detector.supports_svd and detector.config.svd:
        restructure(detector, detector.config.svd)
    return detector


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern."""
    return MODELS.names(pattern)
