"""Which classes a user wants, and from which score on."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from detkit.errors import UserError, did_you_mean
from detkit.models import Detector


def score_thresholds(
    detector: Detector,
    score: float,
    classes: Collection[str] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Tensor:
    """Return (C,) float32, what each class's scores must be above.

    classes: those that are detected, all by default; the others' threshold is inf. thresholds: of single classes, in
    place of `score`.

    Raises UserError for a class that the detector does not know, and a score that its detections cannot have.
    """
    thresholds = thresholds or {}
    for name in [*(classes or ()), *thresholds]:
        if name not in detector.classes:
            raise UserError(f"the detector knows no class {name!r}{did_you_mean(name, detector.classes)}")
    if classes is not None and not classes:
        raise UserError("the list of classes to detect is empty")
    for name, value in [("", score), *thresholds.items()]:
        if not detector.margins and not 0 <= value <= 1:
            raise UserError(f"score {value:g}{f' of class {name}' * bool(name)} is not between 0 and 1")
    kept = detector.classes if classes is None else classes
    return torch.tensor([thresholds.get(name, score) if name in kept else torch.inf for name in detector.classes])
