"""What R-CNN fits to the features of a trained network (and the authors' code): support vector machines with hard
negatives (section 2.3, appendix B), and the bounding-box regression (appendix C)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detkit.models.base import StageRun, TensorSpec
from detkit.models.pairs import Pairs
from detkit.models.region import RegionDetector, stored_proposals
from detkit.ops import box_iou, feature_scale, fit_ridge, fit_svm, gather_boxes, match_regions
from detkit.structures import Images, Targets

HARD = -1.0001  # margin from which on a negative is hard
EASY = -1.2  # margin below which it is dropped again
RETRAIN = 2000  # new negatives of a class after which its SVM is fitted again
NEVER = -1e6  # margin of a class that has no objects to learn from
SCALE = TensorSpec(torch.float32, (), 1e-30)  # of the features, in a stage's state
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
        config, head, classes = detector.config, detector.head, len(detector.classes)
        rows = spread(run.train_count(), config.fit_images)
        layout = HardNegatives.layout(head.svm.in_features, classes)
        state = run.restore(detector, len(rows), layout)
        run.begin()
        miner: HardNegatives | None = None

        def save(done: int) -> None:
            run.save_last(detector, {"done": 0} if miner is None else {"done": done, **miner.state()})

        def negatives(images: Images, targets: Targets) -> tuple[Tensor, Tensor]:
            boxes, valid = regions(images, targets)
            features = detector.extract_features(images, boxes, tail=True)
            negative = overlap_by_class(boxes, targets, classes) < config.svm_negative_iou
            used = valid & detector.features.distinct(boxes, images.sizes, valid)
            return features[used], negative[used]

        if "weight" in state:
            miner = HardNegatives(config, **{name: state[name].to(run.device) for name in layout})
        else:
            scale = measure_scale(detector, run, rows, save, tail=True)
            features, labels = positives(detector, run, rows, save)
            miner = HardNegatives.begin(config, scale, features * scale, labels, classes)
        has_objects = (miner.labels > 0).any(0)
        passed = run.dataset_pass(detector, negatives, rows, "hard negatives", done=state.get("done", 0), save=save)
        for features, negative in passed:
            miner.add(features, negative & has_objects)
        miner.fit(torch.ones_like(miner.new, dtype=torch.bool))
        run.say(f"SVMs: {len(miner.labels)} windows, of {len(rows)} images")
        # host sync: once, after the pass
        missing = [name for name, known in zip(detector.classes, has_objects.tolist()) if not known]
        if missing:
            run.say(f"note: no object of class {', '.join(missing)} to fit an SVM to: it is never detected")
        head.svm.weight.copy_(miner.weight * miner.scale)  # the scale of the features goes into the weights
        head.svm.bias.copy_(torch.where(has_objects, miner.offset, NEVER))
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

    @staticmethod
    def layout(dim: int, classes: int) -> dict[str, TensorSpec]:
        """Return what `state` is, for features (N, dim) and so many classes."""
        return {
            "features": TensorSpec(torch.float32, ("windows", dim)),
            "labels": TensorSpec(torch.int8, ("windows", classes), -1, 1),
            "weight": TensorSpec(torch.float32, (classes, dim)),
            "offset": TensorSpec(torch.float32, (classes,)),
            "new": TensorSpec(torch.int64, (classes,), 0),
            "scale": SCALE,
        }

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

    def objects(images: Images, targets: Targets) -> tuple[Tensor, Tensor]:
        used = targets.valid & ~targets.ignore
        return detector.extract_features(images, targets.boxes, tail=True)[used], targets.labels[used]

    features, labels = zip(*run.dataset_pass(detector, objects, rows, "positives", save=save))
    return torch.cat(features), torch.cat(labels)


def measure_scale(
    detector: RegionDetector, run: StageRun, rows: list[int], save: Callable[[int], None], *, tail: bool
) -> Tensor:
    """Return the factor for features before or after the tail (see `feature_scale`), of some images' regions."""

    def norms(images: Images, targets: Targets) -> tuple[Tensor]:
        boxes, valid = regions(images, targets)
        features = detector.extract_features(images, boxes, tail=tail)
        return (torch.linalg.vector_norm(features[valid], dim=1),)

    rows = [rows[number] for number in spread(len(rows), SCALE_IMAGES)]
    (found,) = zip(*run.dataset_pass(detector, norms, rows, "norm of features", save=save))
    # feature_scale reads norms only, and those of single numbers are the numbers
    return feature_scale(torch.cat(found).unsqueeze(1))


@dataclass(frozen=True)
class BoxRegression:
    """A stage: for each class a ridge regression from a region's features before the tail to its object's deltas.

    (Appendix C.) Of the regions, objects' own boxes among them, of at least IoU `ridge_match_iou` with their object;
    lambda, `ridge`, is for features of mean norm 20.
    """

    name: str = "box_regression"
    iterations_factor: int = 0

    def run(self, detector: RegionDetector, run: StageRun) -> None:
        """Fit `detector.head.regressor`; an interrupted pass over the images goes on where it was."""
        config, head, classes = detector.config, detector.head, len(detector.classes)
        rows = spread(run.train_count(), config.fit_images)
        layout = {"scale": SCALE, "counts": TensorSpec(torch.int64, (classes,), 0)}
        state = run.restore(detector, len(rows), layout)
        pairs: Pairs | None = None
        if run.writes:
            counts = state.get("counts", torch.zeros(classes, dtype=torch.int64))
            pairs = Pairs(run.folder / "pairs", head.regressor.in_features, counts)
        run.begin()
        scale: Tensor | None = state.get("scale")

        def save(done: int) -> None:
            if scale is None or pairs is None:
                run.save_last(detector, {"done": 0})
                return
            pairs.flush()
            run.save_last(detector, {"done": done, "scale": scale, "counts": pairs.counts})

        def matched(images: Images, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
            boxes, valid = regions(images, targets)
            objects = (targets.boxes, targets.valid, targets.ignore)
            match = match_regions(*objects, boxes, valid, config.ridge_match_iou)
            positive = match.index >= 0
            # positives first, cut to the most in an image (host sync): the others need no features
            count = max(1, int(positive.sum(1).max()))
            order = positive.int().argsort(dim=1, descending=True, stable=True)[:, :count]
            boxes, positive = gather_boxes(boxes, order), positive.gather(1, order)
            index = match.index.gather(1, order).clamp(min=0)
            features = detector.extract_features(images, boxes, tail=False)
            deltas = head.coder.encode(gather_boxes(targets.boxes, index), boxes)
            return features[positive], deltas[positive], targets.labels.gather(1, index)[positive]

        if scale is None:
            scale = measure_scale(detector, run, rows, save, tail=False)
        for found in run.dataset_pass(detector, matched, rows, "regression", done=state.get("done", 0), save=save):
            if pairs is not None:
                pairs.add(*found)
        factor = float(scale)  # host sync: once, beside features that are on disk

        def fit(label: int) -> tuple[Tensor, Tensor]:
            assert pairs is not None, "the process that writes has them"
            return fit_ridge(*pairs.of_class(label), config.ridge, factor)

        # class by class: each takes minutes of VGG16's features, and other processes wait only so long for one another
        fitted = [run.on_main(partial(fit, label)) for label in range(classes)]
        weight, offset = (torch.stack(part) for part in zip(*fitted))
        head.regressor.weight.copy_(weight.flatten(0, 1))
        head.regressor.bias.copy_(offset.flatten())
        head.regression_fitted.fill_(True)
        if pairs is not None:
            run.say(f"regression: {int(pairs.counts.sum())} regions, of {len(rows)} images")
        run.conclude(detector)
        if pairs is not None:
            pairs.remove()
