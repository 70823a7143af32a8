"""R-CNN's support vector machines and their hard negatives (section 2.3, appendix B, and the authors' code)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.models.base import StageRun
from detkit.models.region import RegionDetector
from detkit.ops import box_iou, feature_scale, fit_svm
from detkit.structures import Images, Targets

HARD = -1.0001  # margin from which on a negative is hard
EASY = -1.2  # margin below which it is dropped again
RETRAIN = 2000  # new negatives of a class after which its SVM is fitted again
SCALE_IMAGES = 200  # of those seen, that the features' mean norm is taken from


@dataclass(frozen=True)
class SVMs:
    """A stage: one linear SVM a class, fitted while the training images stream by.

    C, positive, bias: see `fit_svm`. negative: a region of less IoU with all objects of a class is its negative; the
    objects are its positives, and all other regions are not used. fit_images: how many images; 0 = all.
    """

    C: float
    positive: float
    bias: float
    negative: float
    fit_images: int
    name: str = "svm"
    iterations_factor: int = 0

    def run(self, detector: RegionDetector, run: StageRun) -> None:
        """Fit `detector.head.svm`; an interrupted pass over the images goes on where it was."""
        state = run.restore(detector)
        run.begin()
        rows = spread(run.train_count(), self.fit_images)

        def save(done: int) -> None:
            run.save_last(detector, {"done": done, "miner": None if miner is None else miner.state()})

        miner: HardNegatives | None = None
        if state.get("miner"):
            miner = HardNegatives(self, **{name: tensor.to(run.device) for name, tensor in state["miner"].items()})
        else:
            scale = measure_scale(detector, run, rows, lambda: save(0), tail=True)
            positives, labels = self.positives(detector, run, rows, scale, lambda: save(0))
            miner = HardNegatives.begin(self, scale, positives, labels, len(detector.classes))
        done = state["done"] if state.get("miner") else 0
        for images, targets in run.dataset_pass(detector, rows, "hard negatives", done=done, save=save):
            boxes, valid = regions(images, targets)
            with run.inference():
                features = detector.extract_features(images, boxes, tail=True)
            negative = overlap_by_class(boxes, targets, len(detector.classes)) < self.negative
            miner.add(features[valid], negative[valid])
        miner.fit(torch.ones_like(miner.new, dtype=torch.bool))
        run.say(f"SVMs: {len(miner.labels)} windows, of {len(rows)} images")
        head = detector.head
        head.svm.weight.copy_(miner.weight * miner.scale)  # the scale of the features goes into the weights
        head.svm.bias.copy_(miner.offset)
        head.svm_fitted.fill_(True)
        run.conclude(detector)

    def positives(
        self, detector: RegionDetector, run: StageRun, rows: list[int], scale: Tensor, save: Callable[[], None]
    ) -> tuple[Tensor, Tensor]:
        """Return the scaled features (P, D) of all objects that are trained on, and their labels (P,)."""
        features, labels = [], []
        for images, targets in run.dataset_pass(detector, rows, "positives", save=lambda _: save()):
            used = targets.valid & ~targets.ignore
            with run.inference():
                described = detector.extract_features(images, targets.boxes, tail=True)
            features.append(described[used] * scale)
            labels.append(targets.labels[used])
        return torch.cat(features), torch.cat(labels)


class HardNegatives:
    """What the SVMs are fitted to: all positives, and of the negatives those that come near or beyond the margin.

    features: (N, D), scaled; labels: (N, K) int8, +1, -1, or 0 where a class does not use a window; weight (K, D) and
    offset (K,): the SVMs so far; new: (K,) hard negatives since a class was fitted; scale: of the features, a scalar.
    """

    def __init__(
        self,
        stage: SVMs,
        features: Tensor,
        labels: Tensor,
        weight: Tensor,
        offset: Tensor,
        new: Tensor,
        scale: Tensor,
    ) -> None:
        self.stage, self.weight, self.offset, self.new, self.scale = stage, weight, offset, new, scale
        self._features, self._labels = [features], [labels]

    @classmethod
    def begin(cls, stage: SVMs, scale: Tensor, positives: Tensor, labels: Tensor, classes: int) -> "HardNegatives":
        """positives: (P, D), scaled; labels: (P,) int64. With weights of 0 all negatives are hard at first."""
        one_hot = torch.nn.functional.one_hot(labels, classes).to(torch.int8)
        weight = positives.new_zeros(classes, positives.shape[1])
        new = torch.zeros(classes, dtype=torch.int64, device=weight.device)
        return cls(stage, positives, one_hot, weight, weight.new_zeros(classes), new, scale)

    @property
    def labels(self) -> Tensor:
        """(N, K) int8, see the class."""
        return torch.cat(self._labels)

    def state(self) -> dict[str, Tensor]:
        """Return all that is needed to go on, as the arguments of the constructor."""
        return {
            "features": torch.cat(self._features),
            "labels": self.labels,
            "weight": self.weight,
            "offset": self.offset,
            "new": self.new,
            "scale": self.scale,
        }

    def add(self, features: Tensor, negative: Tensor) -> None:
        """Take up the hard ones among regions, features (R, D) unscaled, negative (R, K) bool; fit where it is time."""
        features = features * self.scale
        margins = torch.addmm(self.offset, features, self.weight.T)
        hard = negative & (margins > HARD)
        rows = hard.any(1)
        self._features.append(features[rows])
        self._labels.append(-hard[rows].to(torch.int8))
        self.new += hard.sum(0)
        due = self.new > RETRAIN
        if bool(due.any()):  # host sync, as is `rows`: what follows takes seconds
            self.fit(due)

    def fit(self, due: Tensor) -> None:
        """Fit the SVMs of some classes, due (K,) bool, and drop their negatives that became easy."""
        s = self.stage
        features, labels = torch.cat(self._features), self.labels
        start = self.weight[due], self.offset[due]
        weight, offset = fit_svm(features, labels[:, due], s.C, s.positive, s.bias, start)
        self.weight[due], self.offset[due] = weight, offset
        easy = due & (labels < 0) & (torch.addmm(self.offset, features, self.weight.T) < EASY)
        labels = torch.where(easy, 0, labels)
        kept = labels.any(1)
        self._features, self._labels = [features[kept]], [labels[kept]]
        self.new = torch.where(due, 0, self.new)


def spread(count: int, images: int) -> list[int]:
    """Return `images` of range(count), evenly spread; all where `images` is 0 or more than there are."""
    if images == 0 or images >= count:
        return list(range(count))
    return [count * i // images for i in range(images)]


def regions(images: Images, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return the objects and proposals of a batch in one, boxes (B, R, 4), and which are neither padding nor ignored.

    As in R-CNN's code the objects are among the regions: those of other classes are negatives.
    """
    assert images.proposals is not None
    boxes = torch.cat((targets.boxes, images.proposals.boxes), 1)
    return boxes, torch.cat((targets.valid & ~targets.ignore, images.proposals.valid), 1)


def overlap_by_class(boxes: Tensor, targets: Targets, classes: int) -> Tensor:
    """Return (B, R, K): the highest IoU of each box (B, R, 4) with the objects of each class, ignored ones too."""
    iou = box_iou(boxes, targets.boxes) * targets.valid.unsqueeze(1)
    label = targets.labels.clamp(min=0).unsqueeze(1).expand_as(iou)
    return iou.new_zeros(*boxes.shape[:2], classes).scatter_reduce(2, label, iou, "amax")


def measure_scale(
    detector: RegionDetector, run: StageRun, rows: list[int], save: Callable[[], None], *, tail: bool
) -> Tensor:
    """Return the factor for features before or after the tail (see `feature_scale`), of some images' regions."""
    norms = []
    rows = [rows[number] for number in spread(len(rows), SCALE_IMAGES)]
    for images, targets in run.dataset_pass(detector, rows, "norm of features", save=lambda _: save()):
        boxes, valid = regions(images, targets)
        with run.inference():
            features = detector.extract_features(images, boxes, tail=tail)
        norms.append(torch.linalg.vector_norm(features[valid], dim=1))
    # feature_scale reads norms only, and those of single numbers are the numbers
    return feature_scale(torch.cat(norms).unsqueeze(1))
