"""What a detector is."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from detkit.config import Config
from detkit.structures import Detections, Images, InputSpec, Predictions, Targets, TruthSet


class Paper(NamedTuple):
    """Where a detector was published."""

    title: str
    year: int


@dataclass(frozen=True)
class SGD:
    """A stage of a detector's training: gradient descent on its losses, by the config's `train` section.

    iterations_factor: its iterations and milestones are that many times those of the config. can_evaluate: whether the
    detector can detect at its end. store: of the run's folder, the proposals that come with its images.
    """

    name: str = "sgd"
    iterations_factor: int = 1
    can_evaluate: bool = True
    store: str | None = None


class Detector(nn.Module):
    """A network with its losses and its decoding; every detector trains, evaluates and detects through these methods.

    config_type: the dataclass of its config. paper: where it was published, None for one that was not.
    classes: the names behind labels 0..C-1. input: how images must arrive.
    takes_proposals: whether it classifies regions that come with the images.
    class_layers: how the names begin of the weights whose meaning depends on the classes.
    experiment: the whole config of the checkpoint that it was loaded from, if it was.
    """

    config_type: ClassVar[type]
    paper: ClassVar[Paper | None] = None
    takes_proposals: ClassVar[bool] = False
    class_layers: ClassVar[tuple[str, ...]]
    classes: tuple[str, ...]
    input: InputSpec
    backbone: nn.Module
    _shift: Tensor
    _scale: Tensor
    experiment: Config | None = None

    def __init__(self, config: Any, classes: tuple[str, ...], spec: InputSpec) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.input = spec
        # buffers, so that normalising on a GPU copies nothing from the host
        mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
        self.register_buffer("_shift", mean * spec.divisor, persistent=False)
        self.register_buffer("_scale", 1 / (std * spec.divisor), persistent=False)

    @property
    def margins(self) -> bool:
        """Whether scores are margins, which may be any number, and not between 0 and 1."""
        return False

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the pretrained network, whose rate `train.backbone_lr` changes."""
        return self.backbone.parameters()

    def normalise(self, images: Images) -> Tensor:
        """(B, 3, H, W) uint8 -> float32: (value / divisor - mean) / std, and 0 where an image is padded."""
        pixels = (images.pixels - self._shift) * self._scale
        if self.input.resize == "stretch":
            return pixels
        row, column = (torch.arange(side, device=pixels.device) for side in pixels.shape[-2:])
        inside = (row < images.sizes[:, :1]).unsqueeze(2) & (column < images.sizes[:, 1:]).unsqueeze(1)
        return pixels * inside.unsqueeze(1)

    def forward(self, images: Images, targets: Targets | None = None) -> dict[str, Tensor] | Predictions:
        """Losses where targets are given, else predictions: one entry, so that DDP sees every pass."""
        return self.predict(images) if targets is None else self.losses(images, targets)

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """Return named scalar losses, weighted; their sum is what training minimises."""
        raise NotImplementedError

    def predict(self, images: Images) -> Predictions:
        """Return decoded boxes and scores, before NMS."""
        raise NotImplementedError

    def detect(
        self,
        source: Any,
        *,
        score: float = 0.5,
        classes: Collection[str] | None = None,
        thresholds: Mapping[str, float] | None = None,
        nms: str | None = None,
        flip: bool | None = None,
        scales: Sequence[float] | None = None,
        batch: int = 8,
    ) -> list[Detections]:
        """Detect on images, folders, globs, videos and images in memory; one Detections for each image, in order.

        source: a path or pattern, an RGB uint8 array (H, W, 3) or tensor (3, H, W), or a list of these; a video gives
        one for each frame. score: least score. classes: those wanted, all by default. thresholds: another least score
        for some classes. nms: `hard`, `linear` or `gaussian`; flip, scales: test-time augmentation; all three as the
        checkpoint's `detect` section says where they are None, see DetectConfig. batch: images at once.
        Each Detections is of one image, on the CPU, without padding: boxes (1, D, 4) in pixels of the original, best
        first; `.image(0)` takes the 1 away.
        Raises detkit.errors.UserError, naming the source, where one can't be read, and for an unknown class, a score
        that cannot be, or a setting that the detector cannot follow.
        """
        # The engine runs detectors, and nothing here needs it at import; this call alone goes up, for convenience.
        from detkit.inference.predict import detect
        from detkit.inference.thresholds import least_scores

        config = self.experiment or Config(model=self.config)
        given = {"nms": nms, "flip": flip, "scales": None if scales is None else [*scales]}
        settings = replace(config.detect, **{key: value for key, value in given.items() if value is not None})
        least = least_scores(self, score, classes, thresholds)
        return detect(self, source, replace(config, detect=settings), least, batch)

    def check(self, truth: TruthSet) -> None:
        """Raise UserError where these objects of the training split cannot train it."""

    def begin_stage(self, stage: str) -> None:
        """Get ready for a stage: which losses, and which layers stay as they are. A resumed one reads weights after."""

    def stages(self) -> Sequence[Any]:
        """Return the training stages in order: SGD, or others with a `run` of their own, see engine/stages.py."""
        return [SGD()]
