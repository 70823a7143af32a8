"""The sections of an experiment's config, as dataclasses; `experiment.py` reads and writes the YAML files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from omegaconf import MISSING

from detkit.errors import UserError


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key}: {value!r} is not one of {', '.join(allowed)}")


def within(interval: str, default: Any) -> Any:
    """Return a field whose number, or the numbers in its list, lie in an interval such as `[0, 1)`."""
    metadata = {"interval": interval}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


class Section:
    """A dataclass of a config. Its numbers are finite, and where their field says so in an interval; its lists of texts
    or numbers hold no lists.

    section: the key that it stands under.
    """

    section: ClassVar[str] = "model"

    def __post_init__(self) -> None:
        for key in fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, key.name)
            # OmegaConf lets a list through where a list's values are texts or numbers
            nested = isinstance(value, list | tuple) and any(isinstance(part, list | tuple | dict) for part in value)
            if nested and re.match(r"list\[(str|int|float)\]", str(key.type)):
                raise UserError(f"{self.section}.{key.name}: {value} is not a list such as [a, b]")
            interval = key.metadata.get("interval", "(-inf, inf)")
            low, high = map(float, interval[1:-1].split(","))
            for number in numbers(value):
                inside = low < number < high or (number == low and interval[0] == "[")
                if not (inside or (number == high and interval[-1] == "]")):
                    raise UserError(f"{self.section}.{key.name}: {number} is not in {interval}")


def numbers(value: Any) -> Iterator[int | float]:
    """Yield the numbers in plain data; flags are none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)


@dataclass
class BackboneConfig:
    """The network under a detector."""

    name: str = MISSING
    """One of `detkit backbones`."""
    weights: str | None = None
    """`imagenet`, the path of a checkpoint, `voc`, of the detector in the box, or null for random ones."""
    channels: str | None = None
    """Order of the colours that a file's first layer reads: `rgb`, or `bgr` as in weights from Caffe, whose first layer
    is turned round; null: `bgr` for a `.caffemodel`, else `rgb`. `model.mean` and `model.std` are RGB in any case."""

    def __post_init__(self) -> None:
        if self.channels is not None:
            one_of("model.backbone.channels", self.channels, ("rgb", "bgr"))


@dataclass
class DataConfig(Section):
    """A data set, and what the loader does with it."""

    section: ClassVar[str] = "data"

    format: str = "auto"
    """`voc`, `coco` or `yolo`; `auto` finds out which by what `root` holds; `shapes` and `hard_shapes` are drawn by
    detkit on first use; or one of your own, see `data/custom.py`. `given` stands for data sets that `detkit.train` was
    given in Python."""
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
    split_file: str | None = None
    """A JSON file that shares out the images of `root`, in place of splits that are null: ids of `train`, `val` and
    `test`, as `train --data` writes it for a data set without splits."""
    classes: list[str] | None = None
    """Names in label order; null: read from the annotations."""
    difficult: bool = True
    """Whether difficult objects are trained on; crowds never are."""
    cache: bool = False
    """Whether decoded images are kept in memory."""
    augment: list[Any] = field(default_factory=list)
    """Transforms, each {Name: {parameters}} or a name: detkit's own (PhotometricDistort, Expand, IoUCrop,
    RandomInterpolationResize, Mosaic, MixUp), or any of albumentations'. They are taken in turn; Mosaic and MixUp lay
    several images of the split together, each after the transforms that stand before."""
    proposals: list[str] = field(default_factory=list)
    """Stores as `detkit proposals` writes them, for detectors that classify given regions; an image's are those of the
    first store that has it."""
    proposal_count: int | None = within("[1, inf)", None)
    """The best so many proposals of each image, padded where it has fewer; null: all, padded to the most in a batch."""


def parse_every(value: int | float | str) -> tuple[float, str]:
    """Return `train.evaluate_every` as (number, "iterations" | "shares" | "epochs"); UserError for what is none."""
    if isinstance(value, str):
        epochs = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*epochs?\s*", value)
        if epochs and float(epochs[1]):
            return float(epochs[1]), "epochs"
    elif isinstance(value, int):
        return value, "iterations"
    elif value < 1:
        return value, "shares" if value else "iterations"
    raise UserError(
        f"train.evaluate_every: {value!r} is no number of iterations (500), share of the training (0.1), or number of "
        "epochs ('2 epochs')"
    )


@dataclass
class TrainConfig(Section):
    """The recipe of a stage of gradient descent."""

    section: ClassVar[str] = "train"

    weights: str | None = None
    """The detector that training starts from: a checkpoint, `voc` or `torchvision/NAME`; null: none. Where its classes
    are others, the layers that tell classes apart are left out."""
    iterations: int = within("[0, inf)", 0)
    """Optimiser steps; 0: as many as `epochs` take. One of the two is given; on the command line either replaces the
    other."""
    epochs: float = within("[0, inf)", 0.0)
    """Times that the images of `data.train` are seen; 0: as often as `iterations` allow. `milestones` and `warmup` are
    iterations in any case."""
    batch: int = within("[1, 100000]", 32)
    """Images a step, over all processes."""
    optimizer: str = "sgd"
    """`sgd` or `adamw`."""
    lr: float = within("(0, inf)", 1e-3)
    """Learning rate."""
    momentum: float = within("[0, 1)", 0.9)
    """Of SGD; AdamW's first beta."""
    weight_decay: float = within("[0, inf)", 5e-4)
    """Of weights; norms have none."""
    bias_decay: float = within("[0, inf)", 0.0)
    """Weight decay of biases. Faster R-CNN's are decayed as weights are, those of the other Caffe recipes are not."""
    bias_lr: float = within("[0, inf)", 1.0)
    """Factor on the learning rate of biases."""
    backbone_lr: float = within("[0, inf)", 1.0)
    """Factor on the learning rate of the pretrained backbone, the layers of a region head that come from it
    included."""
    class_lr: float = within("[0, inf)", 1.0)
    """Factor on the learning rate of the layers that depend on the classes, such as the classifier of a region head."""
    schedule: str = "cosine"
    """`steps` or `cosine`."""
    milestones: list[int] = within("[0, inf)", [])
    """Iterations at which `steps` multiplies the learning rate by `gamma`."""
    gamma: float = within("(0, 10]", 0.1)
    """See `milestones`."""
    warmup: int = within("[0, inf)", 0)
    """Iterations of linear warm-up."""
    warmup_lr: float = within("[0, inf)", 0.0)
    """Learning rate that the warm-up begins at."""
    amp: str = "none"
    """Number format of the network: `none` is float32, or `bf16`, `fp16`; `auto` is bf16 where the device multiplies it
    fast, else float32."""
    channels_last: bool = True
    """Whether tensors lie in memory with the channels last."""
    clip: float | None = within("(0, inf)", None)
    """Largest norm of the gradient; null: no limit."""
    accumulate: int = within("[1, inf)", 1)
    """Micro-batches a step."""
    ema: float = within("[0, 1)", 0.0)
    """Decay of the averaged weights; 0: none."""
    compile: bool = False
    """Whether the network is compiled by torch.compile."""
    evaluate_every: int | float | str = within("[0, inf)", 0)
    """Between evaluations on `data.val`: iterations (500), a share of the training (0.1: ten times), or epochs
    (`2 epochs`); 0: at the end alone."""
    patience: int = within("[0, inf)", 0)
    """Evaluations on `data.val` in a row without a better mAP after which training ends early; 0: it does not. The
    learning rate falls as if it did not, so with `cosine` what is left out is what trains best."""
    save_every: int = within("[0, inf)", 0)
    """Iterations between saves of `last.pt`; 0: at the end alone."""
    seed: int = within("[0, 4294967295]", 0)
    """Of all random numbers."""
    workers: int = within("[0, 1024]", 2)
    """Processes that load images."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    loggers: list[str] = field(default_factory=list)
    """Where the curves go beside the run's folder: `tensorboard`, `wandb`, `mlflow`, each a package to install."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("train.optimizer", self.optimizer, ("sgd", "adamw"))
        one_of("train.schedule", self.schedule, ("steps", "cosine"))
        one_of("train.amp", self.amp, ("none", "auto", "bf16", "fp16"))
        for logger in self.loggers:
            one_of("train.loggers", logger, ("tensorboard", "wandb", "mlflow"))
        parse_every(self.evaluate_every)
        if self.batch % self.accumulate:
            raise UserError(f"train.batch: {self.batch} is not a multiple of train.accumulate {self.accumulate}")


@dataclass
class DetectConfig(Section):
    """From predictions to detections."""

    section: ClassVar[str] = "detect"

    score_threshold: float = 0.01
    """Scores below it are left out."""
    top_k: int = within("[1, inf)", 400)
    """Best predictions of a class that NMS looks at."""
    nms_iou: float = within("[0, 1]", 0.45)
    """IoU above which the worse of two boxes of a class is suppressed."""
    detections_per_image: int = within("[1, inf)", 200)
    """Best detections of an image that are kept, over all classes."""
    nms: str = "hard"
    """`hard` drops what overlaps a better box; `linear` and `gaussian` are soft-NMS, which lowers its score."""
    sigma: float = within("(0, inf)", 0.5)
    """Of the Gaussian of soft-NMS."""
    flip: bool = False
    """Test-time augmentation: whether each image is also seen mirrored. All that is found goes through one NMS."""
    scales: list[float] = within("[0.1, 10]", [1.0])
    """Test-time augmentation: each image is seen at these factors of its usual size."""
    compile: bool = False
    """Whether the network is compiled by torch.compile, with its weights as constants."""
    proposals: str = "fast"
    """Mode of selective search on images that are in no store, for detectors that classify given regions: `single`,
    `fast` or `quality`."""
    proposal_side: int | None = within("[1, inf)", 500)
    """Of these images: most pixels of the longer side of the copy that selective search sees; null: as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("detect.nms", self.nms, ("hard", "linear", "gaussian"))
        if not self.scales:
            raise UserError("detect.scales: empty; [1.0] is the usual size alone")
        if len(set(self.scales)) < len(self.scales):
            raise UserError(f"detect.scales: {', '.join(f'{scale:g}' for scale in self.scales)} names one twice")
        one_of("detect.proposals", self.proposals, ("single", "fast", "quality"))


@dataclass
class EvaluateConfig(Section):
    """How detections are scored."""

    section: ClassVar[str] = "evaluate"

    metric: str = "voc07"
    """`voc07` (11 points), `voc` (area under the curve) or `coco` (mean over IoUs)."""
    batch: int = within("[1, 100000]", 16)
    """Images at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("evaluate.metric", self.metric, ("voc07", "voc", "coco"))


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
