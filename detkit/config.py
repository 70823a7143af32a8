"""The sections of an experiment's config, as dataclasses; `experiment.py` reads and writes the YAML files."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from detkit.errors import UserError


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key}: {value!r} is not one of {', '.join(allowed)}")


def at_least(section: str, config: Any, least: float, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if value not in (None, MISSING) and value < least:
            raise UserError(f"{section}.{key}: {value} is less than {least}")


def positive(section: str, config: Any, *keys: str) -> None:
    for key in keys:
        value = getattr(config, key)
        if value is not None and not value > 0:
            raise UserError(f"{section}.{key}: {value} is not positive")


@dataclass
class BackboneConfig:
    """The network under a detector."""

    name: str = MISSING
    """One of `detkit backbones`."""
    weights: str | None = None
    """`imagenet`, the path of a checkpoint, or null for random ones."""


@dataclass
class DataConfig:
    """A data set, and what the loader does with it."""

    format: str = "auto"
    """`voc`, `coco` or `yolo`; `auto` finds out which by what `root` holds; `shapes` is drawn by detkit on first use;
    or one of your own, see `data/custom.py`."""
    root: str = MISSING
    """The folder of the data set, or the folder above several of them."""
    train: list[str] | None = None
    """Splits to train on. `SUBFOLDER/SPLIT` where `root` holds several data sets, as in [VOC2007/trainval,
    VOC2012/trainval]; for COCO and YOLO also the .json or .txt file of a split, below `root`. null: what `root`
    holds, `trainval` or else `train`."""
    val: list[str] | None = None
    """Splits that choose the best checkpoint; null: what `root` holds. Without any, `best.pt` is the last one."""
    test: list[str] | None = None
    """Splits that are evaluated on once, at the end; null: what `root` holds."""
    classes: list[str] | None = None
    """Names in label order; null: read from the annotations."""
    difficult: bool = True
    """Whether difficult objects are trained on; crowds never are."""
    cache: bool = False
    """Whether decoded images are kept in memory."""
    augment: list[Any] = field(default_factory=list)
    """Transforms, each {Name: {parameters}} or a name: detkit's own, or any of albumentations'."""
    proposals: list[str] = field(default_factory=list)
    """Stores as `detkit proposals` writes them, for detectors that classify given regions; an image's are those of the
    first store that has it."""
    proposal_count: int = 0
    """The best so many proposals of each image, padded where it has fewer; 0: all, padded to the most in a batch."""

    def __post_init__(self) -> None:
        at_least("data", self, 0, "proposal_count")


@dataclass
class TrainConfig:
    """The recipe of a stage of gradient descent."""

    weights: str | None = None
    """The detector that training starts from: a checkpoint or `torchvision/NAME`; null: none. Where its classes are
    others, the layers that tell classes apart are left out."""
    iterations: int = MISSING
    """Optimiser steps."""
    batch: int = 32
    """Images a step, over all processes."""
    optimizer: str = "sgd"
    """`sgd` or `adamw`."""
    lr: float = 1e-3
    """Learning rate."""
    momentum: float = 0.9
    """Of SGD; AdamW's first beta."""
    weight_decay: float = 5e-4
    """Of weights; biases and norms have none."""
    bias_lr: float = 1.0
    """Factor on the learning rate of biases."""
    backbone_lr: float = 1.0
    """Factor on the learning rate of the pretrained backbone, the layers of a region head that come from it
    included."""
    schedule: str = "cosine"
    """`steps` or `cosine`."""
    milestones: list[int] = field(default_factory=list)
    """Iterations at which `steps` multiplies the learning rate by `gamma`."""
    gamma: float = 0.1
    """See `milestones`."""
    warmup: int = 0
    """Iterations of linear warm-up."""
    warmup_lr: float = 0.0
    """Learning rate that the warm-up begins at."""
    amp: str = "none"
    """Number format of the network: `none` is float32, or `bf16`, `fp16`; `auto` is bf16 where the device multiplies it
    fast, else float32."""
    channels_last: bool = True
    """Whether tensors lie in memory with the channels last."""
    clip: float | None = None
    """Largest norm of the gradient; null: no limit."""
    accumulate: int = 1
    """Micro-batches a step."""
    ema: float = 0.0
    """Decay of the averaged weights; 0: none."""
    compile: bool = False
    """Whether the network is compiled by torch.compile."""
    evaluate_every: int = 0
    """Iterations between evaluations on `data.val`; 0: at the end alone."""
    save_every: int = 0
    """Iterations between saves of `last.pt`; 0: at the end alone."""
    seed: int = 0
    """Of all random numbers."""
    workers: int = 2
    """Processes that load images."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""

    def __post_init__(self) -> None:
        one_of("train.optimizer", self.optimizer, ("sgd", "adamw"))
        one_of("train.schedule", self.schedule, ("steps", "cosine"))
        one_of("train.amp", self.amp, ("none", "auto", "bf16", "fp16"))
        at_least("train", self, 1, "iterations", "batch", "accumulate")
        at_least("train", self, 0, "warmup", "warmup_lr", "evaluate_every", "save_every", "workers")
        at_least("train", self, 0, "ema", "weight_decay", "momentum")
        positive("train", self, "lr", "gamma", "clip")
        if self.ema >= 1:
            raise UserError(f"train.ema: {self.ema} is not below 1")
        if self.batch % self.accumulate:
            raise UserError(f"train.batch: {self.batch} is not a multiple of train.accumulate {self.accumulate}")


@dataclass
class DetectConfig:
    """From predictions to detections."""

    score_threshold: float = 0.01
    """Scores below it are left out."""
    top_k: int = 400
    """Best predictions of a class that NMS looks at."""
    nms_iou: float = 0.45
    """IoU above which the worse of two boxes of a class is suppressed."""
    detections_per_image: int = 200
    """Best detections of an image that are kept, over all classes."""
    nms: str = "hard"
    """`hard` drops what overlaps a better box; `linear` and `gaussian` are soft-NMS, which lowers its score."""
    sigma: float = 0.5
    """Of the Gaussian of soft-NMS."""
    flip: bool = False
    """Test-time augmentation: whether each image is also seen mirrored. All that is found goes through one NMS."""
    scales: list[float] = field(default_factory=lambda: [1.0])
    """Test-time augmentation: each image is seen at these factors of its usual size."""
    proposals: str = "fast"
    """Mode of selective search on images that are in no store, for detectors that classify given regions: `single`,
    `fast` or `quality`."""

    def __post_init__(self) -> None:
        one_of("detect.nms", self.nms, ("hard", "linear", "gaussian"))
        positive("detect", self, "sigma")
        if not self.scales:
            raise UserError("detect.scales: empty; [1.0] is the usual size alone")
        for scale in self.scales:
            if not 0.1 <= scale <= 10:
                raise UserError(f"detect.scales: {scale:g} is not between 0.1 and 10")
        if len(set(self.scales)) < len(self.scales):
            raise UserError(f"detect.scales: {', '.join(f'{scale:g}' for scale in self.scales)} names one twice")
        at_least("detect", self, 1, "top_k", "detections_per_image")
        one_of("detect.proposals", self.proposals, ("single", "fast", "quality"))
        if not 0 <= self.nms_iou <= 1:
            raise UserError(f"detect.nms_iou: {self.nms_iou} is not between 0 and 1")


@dataclass
class EvaluateConfig:
    """How detections are scored."""

    metric: str = "voc07"
    """`voc07` (11 points), `voc` (area under the curve) or `coco` (mean over IoUs)."""
    batch: int = 16
    """Images at once."""

    def __post_init__(self) -> None:
        one_of("evaluate.metric", self.metric, ("voc07", "voc", "coco"))
        at_least("evaluate", self, 1, "batch")


@dataclass
class Config:
    """An experiment."""

    model: Any = MISSING
    """The detector: an instance of its own dataclass, which `model.name` chooses."""
    data: DataConfig = field(default_factory=DataConfig)
    """The data set, and what the loader does with it."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The recipe of gradient descent."""
    detect: DetectConfig = field(default_factory=DetectConfig)
    """From predictions to detections."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """How detections are scored."""
    imports: list[str] = field(default_factory=list)
    """Python files and modules of your own that register models, backbones or data formats, see `extensions.py`."""
