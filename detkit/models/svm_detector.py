"""What R-CNN and SPPNet share: a network tuned as a classifier of regions, then linear stages on its features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detkit.errors import UserError
from detkit.models.base import SGD
from detkit.models.region import RegionConfig, RegionDetector, at_least_one, proposals_of, sample_regions
from detkit.models.ridge_stage import BoxRegression
from detkit.models.shape_checks import output_of
from detkit.models.svm_stage import SVMs
from detkit.ops import BoxCoder, softmax_loss
from detkit.structures import Images, Predictions, Targets, TruthSet

CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))  # R-CNN, appendix C: equations 6 to 9


@dataclass
class SVMDetectorConfig(RegionConfig):
    """The linear stages of R-CNN and SPPNet.

    scoring: what detections are scored by, `svm` or the `softmax` of the fine-tuning. regression: whether boxes are
    regressed. svm_c, svm_positive, svm_bias: C, weight of positives and value of the bias feature. svm_negative: a
    region of less IoU with all objects of a class is a negative of its SVM. ridge: of the regression; ridge_overlap:
    least IoU of the proposals that it learns from. images: training images, evenly spread, that both see; 0 = all.
    """

    scoring: str = "svm"
    regression: bool = True
    svm_c: float = 0.001
    svm_positive_weight: float = 2.0
    svm_bias: float = 10.0
    svm_negative_iou: float = 0.3
    ridge: float = 1000.0
    ridge_match_iou: float = 0.6
    fit_images: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scoring not in ("svm", "softmax"):
            raise UserError(f"model.scoring: {self.scoring!r} is not one of svm, softmax")
        at_least_one(self, "batch_size_per_image")
        for key in ("svm_c", "svm_positive_weight", "svm_bias", "ridge"):
            if not getattr(self, key) > 0:
                raise UserError(f"model.{key}: {getattr(self, key)} is not positive")
        for key in ("svm_negative_iou", "ridge_match_iou"):
            if not 0 < getattr(self, key) <= 1:
                raise UserError(f"model.{key}: {getattr(self, key)} is not an IoU above 0")
        if self.fit_images < 0:
            raise UserError(f"model.fit_images: {self.fit_images} is less than 0")


class SVMHead(nn.Module):
    """The tail of the backbone with a softmax classifier, and what takes its place: an SVM and a regression a class.

    The SVMs read what the tail makes of a region's pooled features, the regression these themselves (R-CNN, appendix C:
    pool5). Until their stages set them, `svm_fitted` and `regression_fitted` are False: then the softmax scores, and
    boxes stay where they are.
    """

    svm_fitted: Tensor
    regression_fitted: Tensor

    def __init__(self, tail: nn.Module, pooled: Sequence[int], classes: int) -> None:
        """pooled: shape of a region's features before the tail."""
        super().__init__()
        self.tail, self.classes = tail, classes
        width = output_of(tail, *pooled).shape[1]
        self.classifier = nn.Linear(width, classes + 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)
        # not for SGD: fitted in one piece by stages of their own
        self.svm = nn.Linear(width, classes).requires_grad_(False)
        self.regressor = nn.Linear(math.prod(pooled), classes * 4).requires_grad_(False)
        for layer in (self.svm, self.regressor):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.register_buffer("svm_fitted", torch.tensor(False))
        self.register_buffer("regression_fitted", torch.tensor(False))

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, ...) -> logits (N, classes + 1), background last: what SGD trains."""
        return self.classifier(self.tail(pooled))

    def detect(self, pooled: Tensor, softmax: bool) -> tuple[Tensor, Tensor]:
        """(N, ...) -> scores (N, classes), of the SVMs or the `softmax`, and deltas (N, classes, 4)."""
        features = self.tail(pooled)
        scores = self.classifier(features).float().softmax(-1)[:, :-1]
        if not softmax:
            scores = torch.where(self.svm_fitted, self.svm(features).float(), scores)
        return scores, self.regressor(pooled.flatten(1)).float().unflatten(1, (-1, 4))


class SVMDetector(RegionDetector):
    """Given proposals, features of each from `prepare` and `pool`, and a SVMHead."""

    takes_proposals = True
    config: Any  # a SVMDetectorConfig
    head: SVMHead

    @property
    def margins(self) -> bool:
        return self.config.scoring == "svm"

    def prepare(self, images: Images) -> Any:
        """Return what is computed once an image, for `pool`."""
        raise NotImplementedError

    def pool(self, prepared: Any, boxes: Tensor) -> Tensor:
        """Return the features before the tail, (B * R, ...), of boxes (B, R, 4)."""
        raise NotImplementedError

    def chunk_size(self, images: int) -> int:
        """Return how many regions of each of so many images fit in memory at once."""
        raise NotImplementedError

    def stages(self) -> list[Any]:
        c = self.config
        stages: list[Any] = [SGD()]
        if c.scoring == "svm":
            stages.append(SVMs(c.svm_c, c.svm_positive_weight, c.svm_bias, c.svm_negative_iou, c.fit_images))
        if c.regression:
            stages.append(BoxRegression(CODER, c.ridge, c.ridge_match_iou, c.fit_images))
        return stages

    def check(self, truth: TruthSet) -> None:
        """Every class needs objects to learn its SVM from."""
        # host sync: once, before training
        count = torch.bincount(truth.labels[~truth.ignore], minlength=len(self.classes)).tolist()
        missing = [name for name, objects in zip(self.classes, count) if objects == 0]
        if missing and self.config.scoring == "svm":
            raise UserError(
                f"data.train: no object of class {', '.join(missing)} to fit an SVM to; leave it out of data.classes, "
                "or use model.scoring=softmax"
            )

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """Fine-tuning: softmax over the classes and background."""
        given = proposals_of(images)
        sampled = sample_regions(given.boxes, given.valid, targets, len(self.classes), self.config)
        logits = self.head(self.pool(self.prepare(images), sampled.boxes))
        logits = logits.unflatten(0, sampled.target.shape)
        return {"classification": softmax_loss(logits, sampled.target, sampled.valid)}

    def predict(self, images: Images) -> Predictions:
        given = proposals_of(images)
        prepared = self.prepare(images)
        boxes, scores = [], []
        # pieces, since what a region needs on its way may be large: of R-CNN's, a whole network's maps
        for some in given.boxes.split(self.chunk_size(len(images)), 1):
            found, deltas = self.head.detect(self.pool(prepared, some), self.config.scoring == "softmax")
            scores.append(found.unflatten(0, some.shape[:2]))
            boxes.append(CODER.decode(deltas.unflatten(0, some.shape[:2]), some.unsqueeze(2)))
        valid = given.valid.unsqueeze(-1)
        return Predictions(torch.cat(boxes, 1), torch.where(valid, torch.cat(scores, 1), -torch.inf))

    def extract_features(self, images: Images, boxes: Tensor, *, tail: bool) -> Tensor:
        """Return the features (B, R, D) float32 of boxes (B, R, 4), before or after the tail."""
        prepared = self.prepare(images)
        pieces = []
        for some in boxes.split(self.chunk_size(len(images)), 1):
            pooled = self.pool(prepared, some)
            features = self.head.tail(pooled) if tail else pooled.flatten(1)
            pieces.append(features.float().unflatten(0, some.shape[:2]))
        return torch.cat(pieces, 1)
