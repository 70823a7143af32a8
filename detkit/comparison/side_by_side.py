"""The images on which detectors disagree the most, with the detections of each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detkit.comparison.rows import Compared
from detkit.data.dataset import DetectionDataset
from detkit.evaluation.errors import IGNORED, RIGHT
from detkit.evaluation.flat import join
from detkit.report.gallery import backdrop, best_first, plain_boxes
from detkit.structures import TruthSet

IMAGES = 16
BOXES = 40  # of a detector on an image at most
COUNTS = (0.5, 1, 2, 4, 8, 16, 32)  # detections an image, of which the page offers the best of each detector


def side_by_side(dataset: DetectionDataset, truth: TruthSet, rows: Sequence[Compared]) -> dict[str, Any]:
    """Return the images as plain data: {"levels": [{"text", "scores"}, ...], "images": [...]}.

    levels: score thresholds, one a detector, since scores of different detectors are of different kinds; first those
    where each one's F1 is best, then those that leave as many detections of each. The images are those with the most
    objects that one detector finds and another does not, and the most different numbers of false positives, at best F1.
    """
    labels, images = zip(*(join(row.detections, truth) for row in rows))
    examples = []
    # a loop over the few images that are shown
    for number in _disagreements(truth, rows, images)[:IMAGES].tolist():
        objects = (truth.image == number).nonzero().squeeze(1)
        boxes, detections = [truth.boxes[objects]], []
        for row, label, image in zip(rows, labels, images):
            found = row.detections
            best = best_first(image == number, found.scores)[:BOXES]
            boxes.append(found.boxes[best])
            detections.append(plain_boxes(best, found.boxes, label, found.scores, row.errors.state))
        examples.append(
            {
                **backdrop(dataset, number, torch.cat(boxes)),
                "objects": plain_boxes(objects, truth.boxes, truth.labels, 3 * truth.ignore.long()),
                "detections": detections,
            }
        )
    return {"levels": _levels(rows, len(truth.ids)), "images": examples}


def _disagreements(truth: TruthSet, rows: Sequence[Compared], images: Sequence[Tensor]) -> Tensor:
    """Numbers of the images, those on which the detectors differ the most first."""
    count = len(truth.ids)
    finders = torch.zeros(len(truth.labels), dtype=torch.int64)  # how many detectors find each object
    wrong = []
    for row, image in zip(rows, images):
        shown = row.detections.scores >= row.score
        right = shown & (row.errors.state == RIGHT)
        finders[row.errors.object[right]] += 1
        false = shown & (row.errors.state != RIGHT) & (row.errors.state != IGNORED)
        wrong.append(torch.bincount(image[false], minlength=count))
    disputed = (finders > 0) & (finders < len(rows))
    spread = torch.stack(wrong).amax(0) - torch.stack(wrong).amin(0)
    key = torch.bincount(truth.image[disputed], minlength=count) + spread
    return key.sort(descending=True, stable=True).indices


def _levels(rows: Sequence[Compared], images: int) -> list[dict[str, Any]]:
    # as the detections are rounded, or one at the very score would be hidden
    levels = [{"text": "from the score where its F1 is best", "scores": [round(row.score, 4) for row in rows]}]
    descending = [row.detections.scores.sort(descending=True).values for row in rows]
    longest = max(map(len, descending))
    for count in COUNTS:
        rank = round(count * images)
        if not 0 < rank < longest:
            continue
        scores = [round(float(part[min(rank, len(part)) - 1]), 4) if len(part) else 0.0 for part in descending]
        levels.append({"text": f"its best {count:g} an image, on average", "scores": scores})
    return [*levels, {"text": "all that it kept", "scores": [None] * len(rows)}]
