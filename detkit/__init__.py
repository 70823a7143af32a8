"""detkit: the classic line of object detectors on shared backbones.

    detector = detkit.load("voc")  # or a checkpoint: "runs/ssd-1/best.pt"
    for found in detector.detect("images/"):
        for box, score, label, name in found:
            ...

Importing detkit is quick: torch comes with the first call.
"""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from detkit import evaluation, ops, viz
    from detkit.config import Config
    from detkit.data.dataset import DetectionDataset
    from detkit.engine.callbacks import Callback
    from detkit.engine.trained import TrainedRun
    from detkit.models import Detector

__all__ = [
    "Callback",
    "create_model",
    "evaluation",
    "list_backbones",
    "list_models",
    "load",
    "open_dataset",
    "ops",
    "train",
    "viz",
]
__version__ = "0.1.0"

_MODULES = ("evaluation", "ops", "viz")


def load(
    checkpoint: "str | Path", device: str = "auto", backend: str | None = None, *, compile: bool = False
) -> "Detector":
    """Return the detector of a checkpoint, in evaluation mode, on `device` (auto, cpu, cuda, cuda:N).

    `voc`, a small SSD that knows PASCAL VOC's 20 classes, is part of detkit.
    `torchvision/ssd300_vgg16`, `torchvision/fasterrcnn_resnet50_fpn` and its `_v2`, `torchvision/maskrcnn_resnet50_fpn`
    and `torchvision/retinanet_resnet50_fpn`, trained on COCO, are fetched on first use; a file of such weights stands
    for a checkpoint, too.
    darknet's yolov1.weights, yolov2.weights, yolov3.weights and others of their kinds stand for checkpoints where their
    cfgs lie beside them.
    An .onnx file as `detkit export` writes it stands for its checkpoint, on the fastest of OpenVINO and ONNX Runtime
    that is installed. backend: `onnxruntime` or `openvino` to run the networks there, a checkpoint's after an export of
    some seconds, `torch`, or `auto` for the fastest; `detector.backend` says which it is.
    compile: whether torch compiles the network at the first image, which takes up to minutes, seconds later on.
    Raises detkit.errors.UserError, in one line, for a file that is missing, damaged or of another architecture.
    """
    from detkit.inference.backends import open_detector

    detector, config = open_detector(checkpoint, device, backend, ["detect.compile=true"] * compile)
    detector.experiment = config
    return detector


def train(
    config: "str | Path | Config | None" = None,
    *,
    data: Any = None,
    val: Any = None,
    test: Any = None,
    classes: Sequence[str] | None = None,
    callbacks: "Sequence[Callback]" = (),
    out: "str | Path | None" = None,
    resume: "str | Path | None" = None,
    **overrides: Any,
) -> "TrainedRun":
    """Train a detector and test the best checkpoint, as `detkit train` does; return what is in the run's folder.

        run = detkit.train(data="cards")  # chooses a recipe for a folder of your own images
        run = detkit.train("custom/ssd_mobilenet_v2", data="cards", train={"iterations": 2000})
        run.metrics["mAP"], run.best, run.plot()

    config: a YAML file, the name of one that comes with detkit, or a detkit.config.Config. Without one, `data` is a
    folder of your own images, and `model` may be a name, as of `detkit train --data`. data: the root of a data set; or
    a dict of keys of the config's section; or the images to train on themselves, then with val, which chooses the best
    checkpoint, and test, where there are such: each a data set of `open_dataset`, or a torch Dataset of (image,
    {"boxes", "labels"}), see detkit.data.given.TorchDataset. classes: their names in label order, where the data set
    does not say them. callbacks: see detkit.Callback. out: the run's folder, new or empty; by default
    runs/CONFIG-NUMBER. resume: the folder of an earlier run to go on with, in place of a config. overrides: other
    sections with the keys that they change, as in `train={"iterations": 2000}`.
    Raises detkit.errors.UserError, in one line, for whatever is wrong, before the folder is made, and
    detkit.runtime.signals.Stopped after Ctrl-C, with all saved.
    """
    from detkit.engine import own_data, session
    from detkit.engine.trained import TrainedRun
    from detkit.errors import UserError
    from detkit.experiment import override_texts

    is_root = isinstance(data, str | os.PathLike)
    own = config is None and resume is None and is_root
    if (resume is None) == (config is None) and not own:
        raise UserError(
            "train: give a config, such as 'shapes/ssd', data, a folder of images, or resume, the folder of a run"
        )
    if resume is not None and out is not None:
        raise UserError("train: resume goes on in its folder; leave out away")
    folders = [None if path is None else str(path) for path in (out, resume)]
    given: dict[str, Any] | None = None
    named: dict[str, Any] = {}
    if data is not None and not is_root and not isinstance(data, Mapping):
        given = {"train": data, "val": val, "test": test}
    elif val is not None or test is not None:
        raise UserError("train: val and test are data sets in Python, and so must data be; or name splits in a dict")
    elif isinstance(data, Mapping):
        named = {"data": data}
    elif is_root and not own:
        named = {"data": {"root": data, "format": "auto"}}
    if classes is not None:
        named["data.classes"] = list(classes)
    if own:
        model = overrides.pop("model") if isinstance(overrides.get("model"), str) else None
        texts = override_texts({**overrides, **named})
        return TrainedRun(own_data.train(str(data), model, texts, folders[0], callbacks))
    start = str(config) if isinstance(config, str | os.PathLike) else config
    texts = override_texts({**overrides, **named})
    return TrainedRun(session.train(start, texts, *folders, given=given, callbacks=callbacks))


def open_dataset(
    root: "str | Path", split: str = "train", *, format: str = "auto", classes: Sequence[str] | None = None
) -> "DetectionDataset":
    """Open a split of a data set: it has a length, can be gone through, and its items, indexed, have a picture.

        dataset = detkit.open_dataset("cards", "train")
        dataset[0].boxes, dataset[0].names, dataset[0].plot()

    root: a folder in VOC, COCO or YOLO layout. split: of it; or SUBFOLDER/SPLIT, or a .json or .txt file below it.
    format: `voc`, `coco` or `yolo`, where the folder fits several; `shapes` draws detkit's own data set first.
    classes: their names in label order, by default as the annotations have them.
    Raises detkit.errors.UserError, in one line, for whatever is missing or broken.
    """
    from detkit.data.opening import open_split

    return open_split(root, split, format, classes)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the detectors that match a shell pattern.

    >>> detkit.list_models("retina*")
    ['retinanet']
    """
    from detkit import models

    return models.list_models(pattern)


def list_backbones(pattern: str = "*") -> list[str]:
    """Return the names of the backbones that match a shell pattern, such as `res*`.

    >>> detkit.list_backbones("resnet?8")
    ['resnet18']
    """
    from detkit import backbones

    return backbones.list_backbones(pattern)


def create_model(
    name: str, *, classes: Sequence[str], backbone: str | dict[str, Any] | None = None, **keys: Any
) -> "Detector":
    """Build an untrained detector.

        >>> detector = detkit.create_model("ssd", backbone="tiny", classes=["cat", "dog"], size=300)
        >>> detector.classes, str(detector.input)
        (('cat', 'dog'), '300x300')

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
    if name == "Callback":
        return import_module("detkit.engine.callbacks").Callback
    raise AttributeError(f"module 'detkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
