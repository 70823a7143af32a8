"""From which score on detections are worth showing."""

import torch

from detkit.evaluation.score import Result


def best_scores(result: Result, floor: float) -> dict[str, float]:
    """Return the score threshold of each class at which F1 is best, at the IoU of `result.curves`.

    A threshold lies halfway between the last score that counts and the next lower one, or `floor` where there is none,
    so that the same detections on other images are not lost by a hair. Classes of which nothing is right have none.
    """
    curves = result.curves
    labels = torch.arange(len(curves.classes)).repeat_interleave(curves.counted.cpu())
    recall, precision, scores = (part.double().cpu() for part in (curves.recall, curves.precision, curves.scores))
    f1 = (2 * recall * precision / (recall + precision)).nan_to_num(0.0)
    # a threshold lies where the score changes, or the class
    is_last = torch.ones_like(labels, dtype=torch.bool)
    is_last[:-1] = (scores[1:] < scores[:-1]) | (labels[1:] != labels[:-1])
    f1 = torch.where(is_last, f1, 0.0)
    best = torch.zeros(len(curves.classes), dtype=f1.dtype).scatter_reduce(0, labels, f1, "amax")
    rows = torch.arange(len(f1))
    at_best = torch.where((f1 == best[labels]) & (f1 > 0), rows, len(rows))
    chosen = torch.full_like(curves.counted.cpu(), len(rows)).scatter_reduce(0, labels, at_best, "amin")
    found = {}
    for label, row in enumerate(chosen.tolist()):
        if row < len(rows):
            follows = row + 1 < len(rows) and int(labels[row + 1]) == label
            found[curves.classes[label]] = (float(scores[row]) + (float(scores[row + 1]) if follows else floor)) / 2
    return found
