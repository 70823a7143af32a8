"""All numbers of a report, which errors.json holds too."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from detkit.evaluation.diagnosis import (
    Calibration,
    Group,
    calibrate,
    confusion_matrix,
    histogram,
    object_groups,
    operating_score,
)
from detkit.evaluation.errors import IGNORED, RIGHT, ErrorAnalysis, analyse_errors
from detkit.evaluation.flat import join
from detkit.structures import DetectionSet, TruthSet


@dataclass(frozen=True)
class Analysis:
    """What there is to say of a data set's detections.

    errors: of all detections; working: of those from `score` on, where F1 is best; found, counted: (C,) int64 true
    positives of these, and all that the metric looks at, by class. confusion: (C + 1, C + 1) at that
    score, see `confusion_matrix`. right_scores, wrong_scores: (20,) int64 histograms over scores in [0, 1], None where
    scores are no probabilities, as calibration is. near: (20,) histogram of the best IoU of detections of at least
    `score`; reach: (20,) of objects to find.
    """

    errors: ErrorAnalysis
    working: ErrorAnalysis
    groups: list[Group]
    score: float
    found: Tensor
    counted: Tensor
    confusion: Tensor
    calibration: Calibration | None
    right_scores: Tensor | None
    wrong_scores: Tensor | None
    near: Tensor
    reach: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Return what errors.json holds."""
        scores = {"right": self.right_scores, "wrong": self.wrong_scores}
        return {
            **self.errors.to_dict(),
            "groups": [group.to_dict() for group in self.groups],
            "best_F1_score": self.score,
            "counts_at_best_F1": self.working.to_dict()["counts"],
            "confusion": {
                "rows": [*self.errors.classes, "no object"],
                "columns": [*self.errors.classes, "none"],
                "counts": self.confusion.tolist(),
            },
            "calibration": self.calibration.to_dict() if self.calibration else None,
            "score_histogram": {name: None if part is None else part.tolist() for name, part in scores.items()},
            "best_iou_histogram": {"detections": self.near.tolist(), "objects": self.reach.tolist()},
        }


def analyse(detections: DetectionSet, truth: TruthSet, metric: str) -> Analysis:
    """Analyse detections by a metric: voc07, voc or coco (at IoU .5). Raises UserError and ValueError as `voc_ap`."""
    errors = analyse_errors(detections, truth, metric)
    score = operating_score(errors, detections.scores)
    counts = errors.state != IGNORED
    scores, right = detections.scores[counts], errors.state[counts] == RIGHT
    calibration = calibrate(scores, right)
    shown = detections.scores >= score
    working = analyse_errors(detections.part(shown), truth, metric)
    labels, _ = join(detections, truth)
    number = len(truth.classes)
    return Analysis(
        errors=errors,
        working=working,
        groups=object_groups(detections, truth, metric),
        score=score,
        found=truth.labels[working.found].bincount(minlength=number),
        counted=labels[shown & counts].bincount(minlength=number),
        confusion=confusion_matrix(detections, truth, score),
        calibration=calibration,
        right_scores=histogram(scores[right]) if calibration else None,
        wrong_scores=histogram(scores[~right]) if calibration else None,
        near=histogram(errors.near[counts & shown]),
        reach=histogram(errors.reach[~truth.ignore]),
    )
