"""detkit: the classic line of object detectors on shared backbones.

    detector = detkit.load("voc")  # or a checkpoint: "runs/ssd-1/best.pt"
    for found in detector.detect("images/"):
        for box, score, label, name in found:
            ...

Importing detkit is quick: torch comes with the first call.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from detkit import evaluation, ops, viz
    from detkit.config import Config
    from detkit.engine.trained import TrainedRun
    from detkit.models import Detector

__all__ = ["create_model", "evaluation", "list_backbones", "list_models", "load", "ops", "train", "viz"]
__version__ = "0.1.0"

_MODULES = ("evaluation", "ops", "viz")


def load(checkpoint: "str | Path", device: str = "auto", backend: str | None = None) -> "Detector":
    """Return the detector of a checkpoint, in evaluation mode, on `device` (auto, cpu, cuda, cuda:N).

    `voc`, a small SSD that knows PASCAL VOC's 20 classes, is part of detkit.
    `torchvision/ssd300_vgg16`, `torchvision/fasterrcnn_resnet50_fpn` and its `_v2`, and
    `torchvision/retinanet_resnet50_fpn`, trained on COCO, are fetched on first use; a file of such weights stands for a
    checkpoint, too.
    darknet's yolov1.weights, yolov2.weights and others of their kinds stand for checkpoints where their cfgs lie beside
    them.
    An .onnx file as `detkit export` writes it stands for its checkpoint, on the fastest of OpenVINO and ONNX Runtime
    that is installed. backend: `onnxruntime` or `openvino` to run the networks there, a checkpoint's after an export of
    some seconds, `torch`, or `auto` for the fastest; `detector.backend` says which it is.
    Raises detkit.errors.UserError, in one line, for a file that is missing, damaged or of another architecture.
    """
    from detkit.inference.backends import open_detector

    detector, config = open_detector(checkpoint, device, backend)
    detector.experiment = config
    return detector


def train(
    config: "str | Path | Config | None" = None,
    *,
    out: "str | Path | None" = None,
    resume: "str | Path | None" = None,
    **overrides: Any,
) -> "TrainedRun":
    """Train a detector and test the best checkpoint, as `detkit train` does; return what is in the run's folder.

    config: a YAML file, the name of one that comes with detkit (`shapes/ssd`), or a detkit.config.Config. Without one,
    `data` is a folder of your own images, and `model` may be a name, as of `detkit train --data`. overrides: sections
    with the keys that they change, as in `data={"root": "cards"}, train={"iterations": 2000}`. out: the run's folder,
    new or empty; by default runs/CONFIG-NUMBER. resume: the folder of an earlier run to go on with, in place of a
    config.
    Raises detkit.errors.UserError, in one line, for whatever is wrong, before the folder is made, and
    detkit.runtime.signals.Stopped after Ctrl-C, with all saved.
    """
    from detkit.engine import own_data, session
    from detkit.engine.trained import TrainedRun
    from detkit.errors import UserError
    from detkit.experiment import override_texts

    if config is None and resume is None and isinstance(data := overrides.get("data"), str | os.PathLike):
        model = overrides.get("model") if isinstance(overrides.get("model"), str) else None
        own = {"data"} if model is None else {"data", "model"}
        texts = override_texts({key: value for key, value in overrides.items() if key not in own})
        return TrainedRun(own_data.train(str(data), model, texts, None if out is None else str(out)))
    if (resume is None) == (config is None):
        raise UserError(
            "train: give a config, such as 'shapes/ssd', data, a folder of images, or resume, the folder of a run"
        )
    if resume is not None and out is not None:
        raise UserError("train: resume goes on in its folder; leave out away")
    start = str(config) if isinstance(config, str | os.PathLike) else config
    folders = (None if path is None else str(path) for path in (out, resume))
    return TrainedRun(session.train(start, override_texts(overrides), *folders))


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
