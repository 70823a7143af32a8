"""Which classes a user wants, and from which score on."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from detkit.errors import UserError, did_you_mean
from detkit.models import Detector

BEST = "best"
USUAL = 0.5  # the threshold where nothing says another


def score_thresholds(
    detector: Detector,
    score: float | str,
    classes: str | Collection[str] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Tensor:
    """Return (C,) float32, what each class's scores must be above.

    score: `best` for those of `detector.best_scores`, and USUAL where it has none of a class. classes: those, or the
    one, that are detected, all by default; the others' threshold is inf. thresholds: of single classes, in place of
    `score`.

    Raises UserError for a class that the detector does not know, a score that its detections cannot have, and for
    `best` where the detector comes without.
    """
    thresholds = thresholds or {}
    known_classes([*thresholds], detector.classes)
    if isinstance(score, str):
        if score != BEST:
            raise UserError(f"score {score!r} is neither a number nor {BEST!r}")
        if detector.best_scores is None:
            raise UserError(
                "score best: the detector has no such thresholds; training keeps them, in last.pt and best.pt, of the "
                "split val, or of test where there is no val"
            )
        score, thresholds = USUAL, {**detector.best_scores.scores, **thresholds}
    kept = detector.classes if classes is None else known_classes(classes, detector.classes)
    if not kept:
        raise UserError("the list of classes to detect is empty")
    for name, value in [("", score), *thresholds.items()]:
        if not detector.margins and not 0 <= value <= 1:
            raise UserError(f"score {value:g}{f' of class {name}' * bool(name)} is not between 0 and 1")
    return torch.tensor([thresholds.get(name, score) if name in kept else torch.inf for name in detector.classes])


def known_classes(names: str | Collection[str], known: Sequence[str]) -> list[str]:
    """Return names of classes, or one name, as a list; UserError for one that a detector of `known` does not know."""
    names = [names] if isinstance(names, str) else [*names]
    for name in names:
        if name not in known:
            raise UserError(f"the detector knows no class {name!r}{did_you_mean(name, known)}")
    return names
