"""The sections of an experiment's config, as dataclasses; `experiment.py` reads and writes the YAML files."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from detkit.errors import UserError


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
    the Gaussian's. flip, scales: test-time augmentation; each image is also seen mirrored, and at these factors of its
    usual size, and all that is found goes through one NMS.
    proposals: mode of selective search on images that are in no store, for detectors that classify given regions.
    """

    score_threshold: float = 0.01
    top_k: int = 400
    nms_iou: float = 0.45
    detections_per_image: int = 200
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
        _at_least("detect.detections_per_image", self.detections_per_image, 1)
        _one_of("detect.proposals", self.proposals, ("single", "fast", "quality"))
        if not 0 <= self.nms_iou <= 1:
            raise UserError(f"detect.nms_iou: {self.nms_iou} is not between 0 and 1")


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
