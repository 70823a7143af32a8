"""What a detector is, and what its training consists of."""

import math
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from detkit.backbones import Backbone, FeatureInfo
from detkit.config import Config
from detkit.errors import UserError
from detkit.models.parts import ExportPart, PartRun
from detkit.models.trace import Trace
from detkit.structures import Detections, Images, InputSpec, Predictions, Proposals, Targets

if TYPE_CHECKING:
    from detkit.evaluation import Result
    from detkit.inference.results import ImageDetections


class Paper(NamedTuple):
    """Where a detector was published."""

    title: str
    year: int


class Flops(NamedTuple):
    """Operations of one image, a multiply-add counted as two.

    image: of what is computed once an image. region: of what is computed for each region, None for dense detectors.
    """

    image: int
    region: int | None = None


class TensorSpec(NamedTuple):
    """What a tensor of a stage's state must be.

    shape: its lengths, a name for one that several tensors share. low, high: between which its values are.
    """

    dtype: torch.dtype
    shape: tuple[int | str, ...]
    low: float = -math.inf
    high: float = math.inf


class StageRun(Protocol):
    """The training run as a stage sees it; `engine/stage_context.py` implements it.

    config: the whole experiment. device: where the stage computes. folder: of the run, where a stage may keep files
    until it concludes. writes: whether this process is the one that writes them.
    """

    @property
    def config(self) -> Config: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def folder(self) -> Path: ...
    @property
    def writes(self) -> bool: ...

    def train_count(self) -> int:
        """Return how many training images there are."""
        ...

    def begin(self) -> None:
        """Note in the run's folder that this stage works from here on: a resume that fails has changed nothing."""

    def restore(
        self, detector: "Detector", images: int = 0, layout: Mapping[str, TensorSpec] | None = None
    ) -> dict[str, Any]:
        """Give the detector the weights of an interrupted stage; return what the stage had saved, or {}.

        images, layout: of a stage that passes over so many images and saves `done` of them, and tensors. UserError
        unless these are all there, as they must be, or none of them at a `done` of 0.
        """
        ...

    def save_last(self, detector: "Detector", state: dict[str, Any]) -> None:
        """Save the detector, and `state`, which a resumed stage gets from `restore`."""

    def conclude(self, detector: "Detector") -> None:
        """Evaluate the detector, and keep it as the run's best."""

    def fit(self, detector: "Detector", stage: "SGD") -> None:
        """Train by gradient descent."""

    def dataset_pass(
        self,
        detector: "Detector",
        extract: Callable[[Images, Targets], tuple[Tensor, ...]],
        indices: Sequence[int],
        text: str,
        *,
        done: int = 0,
        save: Callable[[int], None],
    ) -> Iterator[tuple[Tensor, ...]]:
        """Yield what `extract` computes, without gradients, of the training images `indices` but for the first `done`.

        A batch at a time, in order, without augmentation and on the device. Processes share the work: each extracts of
        some batches, and gets the results of all. text: what the progress is called. save: called with the number of
        images done, now and then and before the stage is interrupted.
        """
        ...

    def on_main(self, make: Callable[[], Any]) -> Any:
        """Let the process that writes alone call `make`; return its result in every process."""
        ...

    def regions(self, store: str | None = None) -> Iterator[tuple[Targets, Proposals]]:
        """Yield the objects and stored proposals of the training images, in pixels of the images.

        store: of the run's folder; by default those of the config.
        """
        ...

    def propose(self, detector: "Detector", store: str) -> None:
        """Write the detector's proposals on the training images to a store in the run's folder."""

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""


class Stage(Protocol):
    """A stage of a detector's training, such as gradient descent, or fitting SVMs on frozen features.

    iterations_factor: its steps of gradient descent, and their milestones, in units of `train.iterations`, each of so
    many times fewer images than `train.batch`; 0 for none.
    """

    @property
    def name(self) -> str: ...
    @property
    def iterations_factor(self) -> int: ...

    def run(self, detector: Any, run: StageRun) -> None:
        """Change the detector in place.

        A stage that may be interrupted begins with `run.restore(detector)`, calls `run.begin()` once it is ready, saves
        with `run.save_last(detector, state)`, and ends with `run.conclude(detector)`.
        """


class Thresholds(NamedTuple):
    """The score of each class from which on its detections had the best F1 on a split; classes that had none lack.

    split: `val`, or `test` where there is no val.
    """

    split: str
    scores: Mapping[str, float]

    def __str__(self) -> str:
        few = [f"{name} {score:.2f}" for name, score in [*self.scores.items()][:8]]
        more = ", ..." * (len(self.scores) > len(few))
        return f"the best F1 on {self.split}: {', '.join(few) or 'of no class'}{more}"


@dataclass(frozen=True)
class SGD:
    """A stage of gradient descent on the detector's losses, by the config's `train` section.

    can_evaluate: whether the detector can detect at its end. store: of the run's folder, the proposals that come with
    the images.
    """

    name: str = "sgd"
    iterations_factor: int = 1
    can_evaluate: bool = True
    store: str | None = None

    def run(self, detector: "Detector", run: StageRun) -> None:
        run.fit(detector, self)


class Detector(nn.Module):
    """A network with its losses and its decoding; every detector trains, evaluates and detects through these methods.

    Two contracts below fill most of them in: `DenseDetector` and `RegionDetector`.

    config_type: the dataclass of its config. paper: where it was published, None for one that was not. kind: `dense`
    detectors classify fixed places of an image, `region` detectors classify regions. takes_proposals: whether these
    come with the images. takes_masks: whether it learns objects' masks, and finds those of its detections.
    supports_svd: whether its fully connected layers may be pairs of thinner ones (`model.svd`). class_layers: how the
    names begin of the weights whose meaning depends on the classes.
    classes: the names behind labels 0..C-1. input: how images must arrive.
    experiment: the whole config of the checkpoint that it was loaded from, if it was. best_scores: the thresholds that
    the checkpoint has, see `Thresholds`. backend: what computes its networks, for people. fixed_nms: settings of the
    NMS that is inside of them, if it is. fast: what predictions on torch run by, see inference/fast.py. compiled: the
    method that `compile_network` compiles, of whole images alone.
    """

    config_type: ClassVar[type]
    paper: ClassVar[Paper | None] = None
    kind: ClassVar[str] = "dense"
    takes_proposals: ClassVar[bool] = False
    takes_masks: ClassVar[bool] = False
    supports_svd: ClassVar[bool] = False
    class_layers: ClassVar[tuple[str, ...]]
    classes: tuple[str, ...]
    input: InputSpec
    backbone: Backbone
    experiment: Config | None = None
    best_scores: "Thresholds | None" = None
    backend: str = "torch"
    fixed_nms: Mapping[str, float] | None = None
    fast: Any = None
    compiled: ClassVar[str | None] = None
    _shift: Tensor
    _scale: Tensor
    _frozen_norms: Sequence[nn.Module] = ()

    def __init__(self, config: Any, classes: tuple[str, ...], spec: InputSpec) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.input = spec
        # buffers, so that normalising on a GPU copies nothing from the host
        mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
        self.register_buffer("_shift", mean * spec.divisor, persistent=False)
        self.register_buffer("_scale", 1 / (std * spec.divisor), persistent=False)

    def choose_maps(self, names: Sequence[str] | None, key: str, min_stride: int = 1) -> list[FeatureInfo]:
        """Return the backbone's maps of these names, by default all of `min_stride` and up.

        key: of the config, beneath `model`, for the UserError about an unknown name.
        """
        known = {info.name: info for info in self.backbone.info}
        if not names:
            return [info for info in known.values() if info.stride >= min_stride]
        for name in names:
            if name not in known:
                kind = self.config.backbone.name
                raise UserError(f"model.{key}: {kind} gives the maps {', '.join(known)}, not {name!r}")
        return [known[name] for name in names]

    @property
    def train_input(self) -> InputSpec:
        """How images must arrive in training; by default as `input` says."""
        return self.input

    # network, losses, decoding

    def normalise(self, pixels: Tensor, sizes: Tensor | None = None) -> Tensor:
        """(B, 3, H, W), 0 to 255 -> float32: (value / divisor - mean) / std.

        sizes: (B, 2), height and width of each image's valid part; outside it pixels become 0.
        """
        pixels = (pixels - self._shift) * self._scale
        if sizes is None or self.input.resize == "stretch":
            return pixels
        row, column = (torch.arange(side, device=pixels.device) for side in pixels.shape[-2:])
        inside = (row < sizes[:, :1]).unsqueeze(2) & (column < sizes[:, 1:]).unsqueeze(1)
        return pixels * inside.unsqueeze(1)

    def forward(self, images: Images, targets: Targets | None = None) -> dict[str, Tensor] | Predictions:
        """Losses where targets are given, else predictions: one entry, so that DDP sees every pass."""
        return self.predict(images) if targets is None else self.losses(images, targets)

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """Return named scalar losses, weighted; their sum is what training minimises."""
        raise NotImplementedError(f"{type(self).__name__}.losses")

    def predict(self, images: Images) -> Predictions:
        """Return decoded boxes and scores, before NMS."""
        raise NotImplementedError(f"{type(self).__name__}.predict")

    def follow(self, images: Images, row: int) -> Callable[[Images], Predictions]:
        """Return what predicts again, of other pixels, what `predict` has in `row` of these images, of which there is
        one: the same place or region, (B, 1, ...), with gradients."""
        return lambda changed: self.predict(changed).row(row)

    def refine(self, images: Images, detections: Detections, features: Any) -> Detections:
        """Return the detections with what is computed of them after NMS, such as masks; by default as they are.

        features: what `predict` left in `Predictions.features`.
        """
        return detections

    def propose_regions(self, images: Images) -> Proposals:
        """Return the regions that the detector itself finds, in pixels of the input; see `proposal_settings`."""
        raise NotImplementedError(f"{type(self).__name__}.propose_regions")

    def proposal_settings(self) -> dict[str, Any] | None:
        """Return what the regions of `propose_regions` depend on, beside the weights; None where there are none."""
        return None

    def limit_proposals(self, count: int) -> None:
        """Let `propose_regions` return at most `count` regions of an image."""

    @property
    def margins(self) -> bool:
        """Whether scores are margins, which may be any number, and not between 0 and 1."""
        return False

    # training

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the pretrained network, whose rate `train.backbone_lr` changes."""
        return self.backbone.parameters()

    def freeze_layers(self, stages: int, norms: bool) -> None:
        """Freeze the first `stages` layer groups of the backbone, and all batch norms so far where `norms` says so.

        UserError where it has fewer.
        """
        self._frozen_norms = []
        if norms:
            self.freeze(*norm_layers(self))
        if stages:  # which not every backbone has
            groups = self.backbone.layer_groups()
            if stages > len(groups):
                raise UserError(f"model.freeze_stages: {stages}, but the backbone has {len(groups)} layer groups")
            self.freeze(*groups[:stages])

    def freeze(self, *modules: nn.Module) -> None:
        """Freeze modules, their batch norms' statistics included."""
        for module in modules:
            module.requires_grad_(False)
            self._frozen_norms = [*self._frozen_norms, *norm_layers(module)]

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for layer in self._frozen_norms:
            layer.eval()
        return self

    def stages(self) -> Sequence[Stage]:
        """Return the training stages in order."""
        return [SGD()]

    def begin_stage(self, stage: str) -> None:
        """Get ready for a stage: which losses, and which layers stay as they are. A resumed one reads weights after."""

    def compile_network(self) -> None:
        """Compile what is computed of whole images; matching, pooling and losses stay as they are."""
        if self.compiled is not None:
            setattr(self, self.compiled, torch.compile(getattr(self, self.compiled)))

    # what the detector tells of itself

    def raw_outputs(self, images: Images) -> list[Tensor]:
        """Return what the network gives for these images before decoding, as a flat list."""
        raise NotImplementedError(f"{type(self).__name__}.raw_outputs")

    def flops(self, height: int, width: int) -> Flops | None:
        """Return the operations for an image of this size; None where not known.

        The network runs on the detector's device; on the meta device it computes nothing.
        """
        return None

    def export_parts(self) -> dict[str, ExportPart]:
        """Return the networks that become files for other programs, by the end of the file's name; {} for none.

        Raises UserError, with the reason alone, where a detector's networks can't be exported.
        """
        return {}

    def use_parts(self, parts: Mapping[str, PartRun]) -> None:
        """Let others compute the networks of `export_parts`, by the end of the file's name, in all predictions.

        The detector's own weights are not read any more. Raises UserError where a detector can't do without them.
        """
        raise UserError(f"{type(self).__name__} runs on torch alone: it has no use_parts")

    def trace(self, images: Images, targets: Targets | None = None) -> Trace:
        """Predict on a batch of one image; return what each step did, with targets also what training would learn."""
        return Trace(self.predict(images), [])

    # detection

    def __call__(self, source: Any, *arguments: Any, **settings: Any) -> Any:
        """`forward` for a batch of Images, `detect` for all else."""
        return (super().__call__ if isinstance(source, Images) else self.detect)(source, *arguments, **settings)

    def detect(
        self,
        source: Any,
        *,
        score: float | str = 0.5,
        classes: str | Collection[str] | None = None,
        thresholds: Mapping[str, float] | None = None,
        nms: str | None = None,
        flip: bool | None = None,
        scales: Sequence[float] | None = None,
        bgr: bool = False,
        batch: int = 8,
    ) -> "list[ImageDetections]":
        """Detect on images, folders, globs, videos, web addresses and images in memory; the detections of each image,
        in order. `detector(source)` is the same.

        source: a path or pattern, an http or https address of an image, an image of Pillow, an RGB uint8 array
        (H, W, 3) or tensor (3, H, W), a batch of such (B, H, W, 3) or (B, 3, H, W), or several of all these; a video
        gives one for each frame, see `stream`. bgr: arrays and tensors have blue first, as OpenCV reads images; all
        else is RGB whatever this says.
        score: the score threshold; `best`: of each class that with which F1 was best on val in training, or on test
        where there was no val, see `best_scores`. classes: those, or the one, that are kept, all by default.
        thresholds: another score threshold for some classes. nms: `hard`, `linear` or `gaussian`; flip, scales:
        test-time augmentation; all three as the checkpoint's `detect` section says where they are None, see
        DetectConfig. batch: images at once.
        Files are not kept in memory: what draws detections reads them again.
        Raises detkit.errors.UserError, naming the source, where one can't be read, and for an unknown class, a score
        that cannot be, or a setting that the detector cannot follow.
        """
        filters = {"score": score, "classes": classes, "thresholds": thresholds}
        views = {"nms": nms, "flip": flip, "scales": scales}
        found = self.stream(source, **filters, **views, bgr=bgr, batch=batch, endless=False)
        return [result.without_pixels() for result in found]

    def evaluate(self, data: Any = None, *, split: str = "test", metric: str | None = None) -> "Result":
        """Detect on a data set and score that; the result has `mAP`, `ap` of each class, and `to_dict()`.

        data: the root of a data set, an opened one, or a torch Dataset as `detkit.train` takes it; by default that of
        the checkpoint's config. split: of the root, or of that config, train, val or test.
        metric: `voc07`, `voc` or `coco`, by default the config's.
        Raises detkit.errors.UserError for a data set that can't be read, or has classes that the detector lacks.
        """
        # It goes up, as the one below, for convenience: inference runs detectors, nothing here needs it at import.
        from detkit.inference.evaluate import evaluate_on

        return evaluate_on(self, data, split, metric)

    def stream(self, source: Any, **settings: Any) -> "Generator[ImageDetections]":
        """Yield what `detect` returns image by image, with its pixels: for long videos, cameras, by their number, and
        iterators without end, of which it reads no more than two batches ahead. settings: those of `detect`."""
        from detkit.inference.predict import stream

        return stream(self, source, **settings)


def norm_layers(module: nn.Module) -> list[nn.Module]:
    """Return the batch norms in a module: one that is frozen keeps its statistics, too."""
    return [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
