"""What R-CNN fits to the features of a trained network (and the authors' code): support vector machines with hard
negatives (section 2.3, appendix B), and the bounding-box regression (appendix C)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from detkit.models.base import StageRun
from detkit.models.region import RegionDetector, stored_proposals
from detkit.ops import box_iou, feature_scale, fit_ridge, fit_svm, gather_boxes, match_regions
from detkit.structures import Images, Targets

HARD = -1.0001  # margin from which on a negative is hard
EASY = -1.2  # margin below which it is dropped again
RETRAIN = 2000  # new negatives of a class after which its SVM is fitted again
SCALE_IMAGES = 200  # of those seen, that the features' mean norm is taken from


@dataclass(frozen=True)
class SVMs:
    """A stage: one linear SVM a class, fitted while the training images stream by.

    The objects of a class are its positives, regions of less IoU than `svm_negative_iou` with all of them its
    negatives; all other regions are not used.
    """

    name: str = "svm"
    iterations_factor: int = 0

    def run(self, detector: RegionDetector, run: StageRun) -> None:
        """Fit `detector.head.svm`; an interrupted pass over the images goes on where it was."""
        config, state = detector.config, run.restore(detector)
        run.begin()
        rows = spread(run.train_count(), config.fit_images)
        miner: HardNegatives | None = None

        def save(done: int) -> None:
            miner_state = None if miner is None else miner.state()
            run.save_last(detector, {"done": 0 if miner is None else done, "miner": miner_state})

        if state.get("miner"):
            miner = HardNegatives(config, **{name: tensor.to(run.device) for name, tensor in state["miner"].items()})
        else:
            scale = measure_scale(detector, run, rows, save, tail=True)
            features, labels = positives(detector, run, rows, save)
            miner = HardNegatives.begin(config, scale, features * scale, labels, len(detector.classes))
        for images, targets in run.dataset_pass(detector, rows, "hard negatives", done=state.get("done", 0), save=save):
            boxes, valid = regions(images, targets)
            with run.inference():
                features = detector.extract_features(images, boxes, tail=True)
            negative = overlap_by_class(boxes, targets, len(detector.classes)) < config.svm_negative_iou
            miner.add(features[valid], negative[valid])
        miner.fit(torch.ones_like(miner.new, dtype=torch.bool))
        run.say(f"SVMs: {len(miner.labels)} windows, of {len(rows)} images")
        head = detector.head
        head.svm.weight.copy_(miner.weight * miner.scale)  # the scale of the features goes into the weights
        head.svm.bias.copy_(miner.offset)
        head.svm_fitted.fill_(True)
        run.conclude(detector)


@dataclass
class HardNegatives:
    """What the SVMs are fitted to: all positives, and of the negatives those that come near or beyond the margin.

    features: (N, D), scaled; labels: (N, K) int8, +1, -1, or 0 where a class does not use a window; weight (K, D) and
    offset (K,): the SVMs so far; new: (K,) hard negatives since a class was fitted; scale: of the features, a scalar.
    added: features and labels of windows that `join` will put beside the others.
    """

    config: Any
    features: Tensor
    labels: Tensor
    weight: Tensor
    offset: Tensor
    new: Tensor
    scale: Tensor
    added: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def begin(cls, config: Any, scale: Tensor, positives: Tensor, labels: Tensor, classes: int) -> "HardNegatives":
        """positives: (P, D), scaled; labels: (P,) int64. With weights of 0 all negatives are hard at first."""
        one_hot = torch.nn.functional.one_hot(labels, classes).to(torch.int8)
        weight = positives.new_zeros(classes, positives.shape[1])
        new = torch.zeros(classes, dtype=torch.int64, device=weight.device)
        return cls(config, positives, one_hot, weight, weight.new_zeros(classes), new, scale)

    def join(self) -> None:
        """Put the added windows beside the others: not as they come, which would copy all of them each time."""
        parts = [(self.features, self.labels), *self.added]
        self.features, self.labels = (torch.cat(part) for part in zip(*parts))
        self.added = []

    def state(self) -> dict[str, Tensor]:
        """Return all that is needed to go on, as the arguments of the constructor."""
        self.join()
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def add(self, features: Tensor, negative: Tensor) -> None:
        """Take up the hard ones among regions, features (R, D) unscaled, negative (R, K) bool; fit where it is time."""
        features = features * self.scale
        margins = torch.addmm(self.offset, features, self.weight.T)
        hard = negative & (margins > HARD)
        rows = hard.any(1)
        self.added.append((features[rows], -hard[rows].to(torch.int8)))
        self.new += hard.sum(0)
        due = self.new > RETRAIN
        if bool(due.any()):  # host sync, as is `rows`: what follows takes seconds
            self.fit(due)

    def fit(self, due: Tensor) -> None:
        """Fit the SVMs of some classes, due (K,) bool, and drop their negatives that became easy."""
        c = self.config
        self.join()
        start = self.weight[due], self.offset[due]
        labels = self.labels[:, due]
        weight, offset = fit_svm(self.features, labels, c.svm_c, c.svm_positive_weight, c.svm_bias, start)
        self.weight[due], self.offset[due] = weight, offset
        easy = due & (self.labels < 0) & (torch.addmm(self.offset, self.features, self.weight.T) < EASY)
        self.labels = torch.where(easy, 0, self.labels)
        kept = self.labels.any(1)
        self.features, self.labels = self.features[kept], self.labels[kept]
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
    proposals = stored_proposals(images)
    valid = torch.cat((targets.valid & ~targets.ignore, proposals.valid), 1)
    return torch.cat((targets.boxes, proposals.boxes), 1), valid


def overlap_by_class(boxes: Tensor, targets: Targets, classes: int) -> Tensor:
    """Return (B, R, K): the highest IoU of each box (B, R, 4) with the objects of each class, ignored ones too."""
    iou = box_iou(boxes, targets.boxes) * targets.valid.unsqueeze(1)
    label = targets.labels.clamp(min=0).unsqueeze(1).expand_as(iou)
    return iou.new_zeros(*boxes.shape[:2], classes).scatter_reduce(2, label, iou, "amax")


def positives(
    detector: RegionDetector, run: StageRun, rows: list[int], save: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """Return the features (P, D) of all objects that are trained on, and their labels (P,)."""
    features, labels = [], []
    for images, targets in run.dataset_pass(detector, rows, "positives", save=save):
        used = targets.valid & ~targets.ignore
        with run.inference():
            features.append(detector.extract_features(images, targets.boxes, tail=True)[used])
        labels.append(targets.labels[used])
    return torch.cat(features), torch.cat(labels)


def measure_scale(
    detector: RegionDetector, run: StageRun, rows: list[int], save: Callable[[int], None], *, tail: bool
) -> Tensor:
    """Return the factor for features before or after the tail (see `feature_scale`), of some images' regions."""
    norms = []
    rows = [rows[number] for number in spread(len(rows), SCALE_IMAGES)]
    for images, targets in run.dataset_pass(detector, rows, "norm of features", save=save):
        boxes, valid = regions(images, targets)
        with run.inference():
            features = detector.extract_features(images, boxes, tail=tail)
        norms.append(torch.linalg.vector_norm(features[valid], dim=1))
    # feature_scale reads norms only, and those of single numbers are the numbers
    return feature_scale(torch.cat(norms).unsqueeze(1))


@dataclass(frozen=True)
class BoxRegression:
    """A stage: for each class a ridge regression from a proposal's features before the tail to its object's deltas.

    (Appendix C.) Of the proposals of at least IoU `ridge_match_iou` with their object; lambda, `ridge`, is for features
    of mean norm 20.
    """

    name: str = "box_regression"
    iterations_factor: int = 0

    def run(self, detector: RegionDetector, run: StageRun) -> None:
        """Fit `detector.head.regressor`; an interrupted pass over the images goes on where it was."""
        config, head, state = detector.config, detector.head, run.restore(detector)
        run.begin()
        rows = spread(run.train_count(), config.fit_images)
        pairs: list[Sequence[Tensor]] = [state["pairs"]] if state.get("pairs") else []
        scale: Tensor | None = state.get("scale")

        def save(done: int) -> None:
            gathered = [torch.cat(part) for part in zip(*pairs)]
            run.save_last(detector, {"done": 0 if scale is None else done, "scale": scale, "pairs": gathered})

        if scale is None:
            scale = measure_scale(detector, run, rows, save, tail=False)
        for images, targets in run.dataset_pass(detector, rows, "regression", done=state.get("done", 0), save=save):
            proposals = stored_proposals(images)
            objects = (targets.boxes, targets.valid, targets.ignore)
            match = match_regions(*objects, proposals.boxes, proposals.valid, config.ridge_match_iou)
            positive = match.index >= 0
            # positives first, cut to the most in an image (host sync): the others need no features
            count = max(1, int(positive.sum(1).max()))
            order = positive.int().argsort(dim=1, descending=True, stable=True)[:, :count]
            boxes, positive = gather_boxes(proposals.boxes, order), positive.gather(1, order)
            matched = match.index.gather(1, order).clamp(min=0)
            with run.inference():
                features = detector.extract_features(images, boxes, tail=False)
            deltas = head.coder.encode(gather_boxes(targets.boxes, matched), boxes)
            # in main memory (host sync, an image batch): VOC07 has gigabytes of them
            pairs.append([x[positive].cpu() for x in (features, deltas, targets.labels.gather(1, matched))])
        features, deltas, labels = (torch.cat(part) for part in zip(*pairs))
        scale = scale.cpu()  # host sync: once, beside features that are there
        weight, offset = fit_ridge(features * scale, deltas, labels, len(detector.classes), config.ridge)
        run.say(f"regression: {len(labels)} proposals, of {len(rows)} images")
        head.regressor.weight.copy_((weight * scale).flatten(0, 1))
        head.regressor.bias.copy_(offset.flatten())
        head.regression_fitted.fill_(True)
        run.conclude(detector)
