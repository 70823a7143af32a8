"""Configs: YAML files checked against dataclasses.

An unknown key or a wrong type ends with one line that names the file or argument, the key, and the nearest known key.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigKeyError,
    GrammarParseError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from detkit import extensions
from detkit.errors import UserError, did_you_mean
from detkit.files import write_atomic

T = TypeVar("T")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key}: {value!r} is not one of {', '.join(allowed)}")


def _at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise UserError(f"{key}: {value} is less than {least}")


def _positive(key: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{key}: {value} is not positive")


@dataclass
class BackboneConfig:
    """name: see `detkit backbones`; weights: `imagenet`, a checkpoint's path, or null for random ones."""

    name: str = MISSING
    weights: str | None = None


@dataclass
class DataConfig:
    """A data set and what the loader does with it.

    format: `voc`, `coco` or `yolo`; `auto` finds out which by what root holds; `shapes` is drawn by detkit on first
    use; or one of your own, see data/custom.py. root: the folder of the data set, or the folder above several of them.
    train, val, test: split names, `SUBFOLDER/SPLIT` where root holds several (07+12: [VOC2007/trainval,
    VOC2012/trainval]), or for COCO and YOLO the .json or .txt file of a split below root; null takes what root holds.
    classes: null reads them from the annotations.
    difficult: whether difficult objects are trained on (crowds never are). cache: keep decoded images in memory.
    augment: a list of {TransformName: {parameters}}, detkit's own or any of albumentations'.
    proposals: stores as `detkit proposals` writes them, searched by image in this order, for detectors that classify
    given regions. proposal_count: the best so many of each image, padded where it has fewer; 0 takes all, padded to
    the most in a batch.
    """

    format: str = "auto"
    root: str = MISSING
    train: list[str] | None = None
    val: list[str] | None = None
    test: list[str] | None = None
    classes: list[str] | None = None
    difficult: bool = True
    cache: bool = False
    augment: list[Any] = field(default_factory=list)
    proposals: list[str] = field(default_factory=list)
    proposal_count: int = 0

    def __post_init__(self) -> None:
        known = ("auto", "voc", "coco", "yolo", "shapes")
        if self.format not in known:
            from detkit.data.formats import DATASETS  # not at the top: it is large, and few have formats of their own

            _one_of("data.format", self.format, tuple(dict.fromkeys((*known, *DATASETS))))
        _at_least("data.proposal_count", self.proposal_count, 0)


@dataclass
class TrainConfig:
    """The recipe of one stage of SGD.

    weights: the detector that training starts from, a checkpoint or `torchvision/NAME`, null for none. Of one with
    other classes the layers that tell classes apart are left out.
    iterations: optimiser steps. batch: images a step over all processes. bias_lr: factor on the rate of biases,
    which, like norms, have no weight decay. backbone_lr: factor on the rate of the pretrained backbone, a
    region head's layers that come from it included.
    milestones: iterations at which `steps` multiplies the rate by gamma. warmup: iterations of linear warm-up,
    which begins at warmup_lr.
    amp: number format of the network, none = float32; auto is bf16 where the device multiplies it fast, else none.
    clip: largest gradient norm. accumulate: micro-batches a step. ema: decay of the averaged weights, 0 = none.
    evaluate_every, save_every: iterations, 0 = only at the end.
    """

    weights: str | None = None
    iterations: int = MISSING
    batch: int = 32
    optimizer: str = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_lr: float = 1.0
    backbone_lr: float = 1.0
    schedule: str = "cosine"
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.1
    warmup: int = 0
    warmup_lr: float = 0.0
    amp: str = "none"
    channels_last: bool = True
    clip: float | None = None
    accumulate: int = 1
    ema: float = 0.0
    compile: bool = False
    evaluate_every: int = 0
    save_every: int = 0
    seed: int = 0
    workers: int = 2
    device: str = "auto"

    def __post_init__(self) -> None:
        _one_of("train.optimizer", self.optimizer, ("sgd", "adamw"))
        _one_of("train.schedule", self.schedule, ("steps", "cosine"))
        _one_of("train.amp", self.amp, ("none", "auto", "bf16", "fp16"))
        for key in ("iterations", "batch", "accumulate"):
            if getattr(self, key) != MISSING:
                _at_least(f"train.{key}", getattr(self, key), 1)
        for key in (
            "warmup",
            "warmup_lr",
            "evaluate_every",
            "save_every",
            "workers",
            "ema",
            "weight_decay",
            "momentum",
        ):
            _at_least(f"train.{key}", getattr(self, key), 0)
        for key in ("lr", "gamma"):
            _positive(f"train.{key}", getattr(self, key))
        if self.ema >= 1:
            raise UserError(f"train.ema: {self.ema} is not below 1")
        if self.clip is not None:
            _positive("train.clip", self.clip)
        if self.batch % self.accumulate:
            raise UserError(f"train.batch: {self.batch} is not a multiple of train.accumulate {self.accumulate}")


@dataclass
class DetectConfig:
    """From predictions to detections: score threshold, best top_k a class, NMS at iou, best keep an image.

    nms: `hard` drops what overlaps a better box, `linear` and `gaussian` are soft-NMS, which lowers its score; sigma is
    the Gaussian's. flip, scales: test-time augmentation; each photo is also seen mirrored, and at these factors of its
    usual size, and all that is found goes through one NMS.
    proposals: mode of selective search on photos that are in no store, for detectors that classify given regions.
    """

    score: float = 0.01
    top_k: int = 400
    iou: float = 0.45
    keep: int = 200
    nms: str = "hard"
    sigma: float = 0.5
    flip: bool = False
    scales: list[float] = field(default_factory=lambda: [1.0])
    proposals: str = "fast"

    def __post_init__(self) -> None:
        _one_of("detect.nms", self.nms, ("hard", "linear", "gaussian"))
        _positive("detect.sigma", self.sigma)
        if not self.scales:
            raise UserError("detect.scales: empty; [1.0] is the usual size alone")
        for scale in self.scales:
            if not 0.1 <= scale <= 10:
                raise UserError(f"detect.scales: {scale:g} is not between 0.1 and 10")
        if len(set(self.scales)) < len(self.scales):
            raise UserError(f"detect.scales: {', '.join(f'{scale:g}' for scale in self.scales)} names one twice")
        _at_least("detect.top_k", self.top_k, 1)
        _at_least("detect.keep", self.keep, 1)
        _one_of("detect.proposals", self.proposals, ("single", "fast", "quality"))
        if not 0 <= self.iou <= 1:
            raise UserError(f"detect.iou: {self.iou} is not between 0 and 1")


@dataclass
class EvaluateConfig:
    """metric: voc07 (11 points), voc (area under the curve) or coco (mean over IoUs). batch: images at once."""

    metric: str = "voc07"
    batch: int = 16

    def __post_init__(self) -> None:
        _one_of("evaluate.metric", self.metric, ("voc07", "voc", "coco"))
        _at_least("evaluate.batch", self.batch, 1)


@dataclass
class Config:
    """A whole experiment. `model` is an instance of the detector's own dataclass, found by `model.name`.

    imports: Python files and modules of your own that register models, backbones or formats, see extensions.py.
    """

    model: Any = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    imports: list[str] = field(default_factory=list)


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML config, then apply `key=value` arguments.

    Raises UserError, in one line: a missing or broken file, an unknown key, a wrong type, a missing value.
    """
    return parse_config(read_yaml(path), str(path), overrides)


def parse_config(
    values: DictConfig, source: str, overrides: list[str] | None = None, *, trusted: bool = True
) -> Config:
    """Check values read from `source` and `key=value` arguments against the dataclasses.

    trusted: whether the code that `values` names in `imports` is run; that of the arguments is.
    """
    from detkit.models import model_config_type  # not at the top: models import this module

    arguments = [(f"argument {text!r}", parse_override(text)) for text in overrides or []]
    for layer in [values, *(layer for _, layer in arguments)] if trusted else [layer for _, layer in arguments]:
        if isinstance(names := layer.get("imports"), ListConfig):  # what is no list is refused below
            extensions.import_code(map(str, names))
    if not trusted:
        _check_code(values, source)
    name = None
    for _, layer in [(source, values), *arguments]:
        model = layer.get("model") if isinstance(layer, DictConfig) else None
        name = model.get("name", name) if isinstance(model, DictConfig) else name
    if name is None:
        raise UserError(f"{source}: model.name is missing; an example: model: {{name: ssd}}")
    try:
        schema = OmegaConf.structured(Config)
        schema.model = OmegaConf.structured(model_config_type(str(name)))
    except UserError as error:
        raise UserError(f"{source}: model.name: {error}") from None
    merged = schema
    for origin, layer in [(source, values), *arguments]:
        merged = _merge(merged, layer, origin)
    config = _to_object(merged, source)
    if trusted:  # the command line's --import is part of an experiment, too
        config.imports += [name for name in extensions.imported if name not in config.imports]
    return config


def _check_code(values: DictConfig, source: str) -> None:
    """Raise UserError where names are unknown that the code in `imports` would register."""
    from detkit.backbones import BACKBONES
    from detkit.data.formats import DATASETS
    from detkit.models import MODELS

    known = {
        "model.name": MODELS,
        "model.backbone.name": BACKBONES,
        "data.format": ("auto", "shapes", *DATASETS),
    }
    for key, names in known.items():
        name = OmegaConf.select(values, key)
        if values.get("imports") and isinstance(name, str) and "/" not in name and name not in names:
            options = " ".join(f"--import {each}" for each in values.imports)
            raise UserError(
                f"{source}: {key} is {name!r}, of code that is not loaded: add {options} (in Python, import it first)"
            )


def read_yaml(path: str | Path) -> DictConfig:
    """Read a YAML mapping; UserError where the file is missing, unreadable or something else."""
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise UserError(f"no config {path}" + (did_you_mean(str(path), near) if near else ""))
    try:
        values = OmegaConf.load(path)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a YAML text file") from None
    except Exception as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, DictConfig):
        raise UserError(f"{path}: a config is a mapping of keys such as model, data, train")
    return values


def parse_override(text: str) -> DictConfig:
    """`train.lr=0.01` -> {train: {lr: 0.01}}."""
    key, equals, _ = text.partition("=")
    if not equals or not key or key.startswith("-"):
        raise UserError(f"argument {text!r} is not key=value; an example: train.lr=0.01")
    try:
        return OmegaConf.from_dotlist([text])
    except Exception as error:
        raise UserError(f"argument {text!r}: {' '.join(str(error).split())}") from None


def save_config(path: str | Path, config: Config) -> None:
    """Write the resolved config as YAML."""
    write_atomic(path, OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))


def to_plain(config: Any) -> dict[str, Any]:
    """Return plain dicts, lists and scalars, as a checkpoint carries them."""
    return dataclasses.asdict(config)


def from_plain(values: dict[str, Any], source: str, overrides: list[str] | None = None) -> Config:
    """Rebuild a config from a checkpoint's plain values."""
    return parse_config(OmegaConf.create(values), source, overrides, trusted=False)


def _merge(base: DictConfig, layer: DictConfig, origin: str) -> DictConfig:
    try:
        return OmegaConf.merge(base, layer)  # pyright: ignore[reportReturnType]
    except ConfigKeyError as error:
        key = str(error.full_key or error.key)
        parent, _, leaf = key.rpartition(".")
        node = OmegaConf.select(base, parent) if parent else base
        known = [str(name) for name in node] if isinstance(node, DictConfig) else []
        raise UserError(f"{origin}: unknown key {key!r}{did_you_mean(leaf, known)}") from None
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{origin}: {_reason(base, layer, error)}") from None


def _reason(base: DictConfig, layer: DictConfig, error: Exception) -> str:
    """Name the key at fault: OmegaConf does so for scalars, not where a mapping and a scalar meet."""
    if isinstance(key := getattr(error, "full_key", None), str) and key:
        reason = str(error).splitlines()[0]
        return f"{key}: expected a list such as [a, b]" if "ListConfig" in reason else f"{key}: {reason}"
    for key in layer:
        node, value = OmegaConf.select(base, str(key)), layer[key]
        if isinstance(node, DictConfig) and not isinstance(value, DictConfig):
            return f"{key}: {value!r} is not a mapping with keys such as {', '.join(map(str, list(node)[:3]))}"
        if isinstance(node, DictConfig) and isinstance(value, DictConfig):
            try:
                OmegaConf.merge(node, value)
            except (OmegaConfBaseException, ValueError, TypeError) as inner:
                return f"{key}.{_reason(node, value, inner)}"
    return " ".join(str(error).split())


def _to_object(merged: DictConfig, source: str) -> Config:
    missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
    if missing:
        raise UserError(f"{source}: missing {', '.join(missing)}")
    try:
        return OmegaConf.to_object(merged)  # pyright: ignore[reportReturnType]
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except (MissingMandatoryValue, GrammarParseError, OmegaConfBaseException) as error:
        raise UserError(f"{source}: {str(error).splitlines()[0]}") from None
