"""detkit: the classic line of object detectors on shared backbones.

    detector = detkit.load("runs/shapes-1/best.pt")
    for detections in detector.detect("images/"):
        boxes, scores, labels = detections.image(0)

Importing detkit is quick: torch comes with the first call.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from detkit import evaluation, ops
    from detkit.models import Detector

__all__ = ["create_model", "evaluation", "list_backbones", "list_models", "load", "ops"]

_MODULES = ("evaluation", "ops")


def load(checkpoint: "str | Path", device: str = "auto", backend: str | None = None) -> "Detector":
    """Return the detector of a checkpoint, in evaluation mode, on `device` (auto, cpu, cuda, cuda:N).

    `torchvision/ssd300_vgg16`, `torchvision/fasterrcnn_resnet50_fpn` and its `_v2`, trained on COCO, are fetched on
    first use; a file of such weights stands for a checkpoint, too.
    darknet's yolov1.weights, or another YOLOv1 of that program, stands for a checkpoint where its cfg lies beside it.
    An .onnx file as `detkit export` writes it stands for its checkpoint, on the fastest of OpenVINO and ONNX Runtime
    that is installed. backend: `onnxruntime` or `openvino` to run the networks there, a checkpoint's after an export of
    some seconds, `torch`, or `auto` for the fastest; `detector.backend` says which it is.
    Raises detkit.errors.UserError, in one line, for a file that is missing, damaged or of another architecture.
    """
    from detkit.inference.backends import open_detector

    detector, config = open_detector(checkpoint, device, backend)
    detector.experiment = config
    return detector


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the detectors that match a shell pattern."""
    from detkit import models

    return models.list_models(pattern)


def list_backbones(pattern: str = "*") -> list[str]:
    """Return the names of the backbones that match a shell pattern, such as `res*`."""
    from detkit import backbones

    return backbones.list_backbones(pattern)


def create_model(
    name: str, *, classes: Sequence[str], backbone: str | dict[str, Any] | None = None, **keys: Any
) -> "Detector":
    """Build an untrained detector.

    name: one of list_models(). classes: their names, in label order. backbone: one of list_backbones(), or a dict of
    its keys such as {"name": "vgg16", "weights": "imagenet"}; None is the model's own. keys: any key of a config's
    `model` section. Raises detkit.errors.UserError for an unknown name or key (with the nearest) or a wrong value.
    """
    from omegaconf import OmegaConf

    from detkit.errors import UserError
    from detkit.experiment import parse_config
    from detkit.models import build_detector

    if not isinstance(classes, list | tuple) or not classes or not all(isinstance(entry, str) for entry in classes):
        raise UserError(f"create_model: classes is a list of names, such as ['cat', 'dog']; got {classes!r}")
    model = {"name": name, **keys}
    if backbone is not None:
        model["backbone"] = {"name": backbone} if isinstance(backbone, str) else backbone
    # checked as the `model` section of a config, whose other sections have two keys without a default
    values = {"model": model, "data": {"root": ""}, "train": {"iterations": 1}}
    config = parse_config(OmegaConf.create(values), "create_model")
    return build_detector(config.model, tuple(classes))


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"detkit.{name}")
    raise AttributeError(f"module 'detkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
