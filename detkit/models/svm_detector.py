"""What R-CNN and SPPNet share: a network fine-tuned as a classifier of regions, then SVMs and a regression on its
features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detkit.config import one_of, within
from detkit.models.base import SGD, Stage
from detkit.models.region import RegionConfig, RegionDetector, SampledRegions
from detkit.models.shape_checks import tail_width
from detkit.models.svm_stages import BoxRegression, SVMs
from detkit.ops import BoxCoder, softmax_loss

CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))  # R-CNN, appendix C: equations 6 to 9


@dataclass
class SVMDetectorConfig(RegionConfig):
    """The stages of R-CNN and SPPNet that follow fine-tuning."""

    scoring: str = "svm"
    """What detections are scored by: `svm`, or the `softmax` of the fine-tuning."""
    regression: bool = True
    """Whether boxes are regressed."""
    svm_c: float = within("(0, inf)", 0.001)
    """C of the SVMs."""
    svm_positive_weight: float = within("(0, inf)", 2.0)
    """Weight of positives in the SVMs' loss."""
    svm_bias: float = within("(0, inf)", 10.0)
    """Value of the SVMs' bias feature."""
    svm_negative_iou: float = within("(0, 1]", 0.3)
    """A region of less IoU with all objects of a class is a negative of its SVM."""
    ridge: float = within("(0, inf)", 1000.0)
    """Lambda of the box regression."""
    ridge_match_iou: float = within("(0, 1]", 0.6)
    """Least IoU with its object of a proposal that the box regression learns from."""
    fit_images: int = within("[0, inf)", 0)
    """Training images, evenly spread, that SVMs and regression see; 0: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model.scoring", self.scoring, ("svm", "softmax"))


class SVMHead(nn.Module):
    """The tail of the backbone with a softmax classifier, and what takes its place: an SVM and a regression a class.

    The SVMs read what the tail makes of a region's pooled features, the regression these themselves (R-CNN, appendix C:
    pool5). Until their stages set them, `svm_fitted` and `regression_fitted` are False: then the softmax scores, and
    boxes stay where they are. scoring: `svm` or `softmax`.
    """

    coder = CODER
    svm_fitted: Tensor
    regression_fitted: Tensor

    def __init__(self, tail: nn.Module, pooled: Sequence[int], classes: int, scoring: str) -> None:
        """pooled: shape of a region's features before the tail."""
        super().__init__()
        self.tail, self.classes, self.scoring = tail, classes, scoring
        width = tail_width(tail, pooled)
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

    def logits(self, pooled: Tensor) -> Tensor:
        """(B, R, ...) -> logits (B, R, classes + 1), background last: what SGD trains."""
        return self.classifier(self.tail(pooled.flatten(0, 1))).unflatten(0, pooled.shape[:2])

    def losses(self, pooled: Tensor, sampled: SampledRegions) -> dict[str, Tensor]:
        """Fine-tuning: softmax over the classes and background (R-CNN, section 2.3)."""
        return {"classification": softmax_loss(self.logits(pooled), sampled.labels, sampled.valid)}

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = self.raw(pooled.flatten(0, 1))
        return scores.unflatten(0, pooled.shape[:2]), deltas.unflatten(0, pooled.shape[:2])

    def raw(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(N, ...) -> scores (N, classes), of the SVMs or the softmax, and deltas (N, classes, 4)."""
        features = self.tail(pooled)
        scores = self.classifier(features).float().softmax(-1)[:, :-1]
        if self.scoring == "svm":
            scores = torch.where(self.svm_fitted, self.svm(features).float(), scores)
        return scores, self.regressor(pooled.flatten(1)).float().unflatten(1, (-1, 4))

    def outputs(self) -> dict[str, str]:
        return {
            "scores": f"(regions, {self.classes}) float32, of each class",
            "deltas": f"(regions, {self.classes}, 4) float32, of each class, from the regions, see coder",
        }


class SVMDetector(RegionDetector):
    """Stored proposals, features of each, and an SVMHead."""

    config: SVMDetectorConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    head: SVMHead

    @property
    def margins(self) -> bool:
        return self.config.scoring == "svm"

    def stages(self) -> Sequence[Stage]:
        stages: list[Stage] = [SGD()]
        if self.config.scoring == "svm":
            stages.append(SVMs())
        if self.config.regression:
            stages.append(BoxRegression())
        return stages
