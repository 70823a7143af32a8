"""The images on which detectors disagree the most, with what each found on them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detkit.evaluation.errors import IGNORED, RIGHT
from detkit.report.gallery import image_of, labels_of, paper_of, short_box
from detkit.structures import TruthSet

if TYPE_CHECKING:
    from detkit.comparison.rows import Compared
    from detkit.data.dataset import DetectionDataset

IMAGES = 16
BOXES = 40  # of a detector on an image at most
COUNTS = (0.5, 1, 2, 4, 8, 16, 32)  # detections an image, of which the page offers the best of each detector


def side_by_side(dataset: "DetectionDataset", truth: TruthSet, rows: Sequence["Compared"]) -> dict[str, Any]:
    """Return the images as plain data: {"levels": [{"text", "scores"}, ...], "images": [...]}.

    levels: least scores, one a detector, since scores of different detectors are of different kinds; first those where
    each one's F1 is best, then those that leave as many of each. The images are those with the most objects that some
    detectors find and others don't, and the most different numbers of false positives, at best F1.
    """
    images = [image_of(row.detections, truth) for row in rows]
    index = _disagreements(truth, rows, images)[:IMAGES]
    examples = []
    # a loop over the few images that are shown
    for number in index.tolist():
        objects = (truth.image == number).nonzero().squeeze(1)
        found = [_best(row, image, number) for row, image in zip(rows, images)]
        boxes = torch.cat([truth.boxes[objects], *(row.detections.boxes[own] for row, own in zip(rows, found))])
        examples.append(
            {
                **paper_of(dataset, number, boxes),
                "objects": [
                    [label, 3 if ignore else 0, *short_box(box)]
                    for label, ignore, box in zip(
                        truth.labels[objects].tolist(), truth.ignore[objects].tolist(), truth.boxes[objects].tolist()
                    )
                ],
                "found": [_detections(row, own, truth) for row, own in zip(rows, found)],
            }
        )
    return {"levels": _levels(rows, len(truth.ids)), "images": examples}


def _disagreements(truth: TruthSet, rows: Sequence["Compared"], images: Sequence[Tensor]) -> Tensor:
    """Numbers of the images, those on which the detectors differ the most first."""
    count = len(truth.ids)
    times = torch.zeros(len(truth.labels), dtype=torch.int64)  # by how many detectors an object is found
    wrong = []
    for row, image in zip(rows, images):
        shown = row.detections.scores >= row.score
        right = shown & (row.errors.state == RIGHT)
        times[row.errors.object[right]] += 1
        false = shown & (row.errors.state != RIGHT) & (row.errors.state != IGNORED)
        wrong.append(torch.bincount(image[false], minlength=count))
    disputed = (times > 0) & (times < len(rows))
    spread = torch.stack(wrong).amax(0) - torch.stack(wrong).amin(0)
    key = torch.bincount(truth.image[disputed], minlength=count) + spread
    return key.sort(descending=True, stable=True).indices


def _best(row: "Compared", image: Tensor, number: int) -> Tensor:
    found = (image == number).nonzero().squeeze(1)
    return found[row.detections.scores[found].sort(descending=True, stable=True).indices[:BOXES]]


def _detections(row: "Compared", rows: Tensor, truth: TruthSet) -> list[list[Any]]:
    parts = (
        labels_of(row.detections, truth)[rows].tolist(),
        row.detections.scores[rows].tolist(),
        row.errors.state[rows].tolist(),
        row.detections.boxes[rows].tolist(),
    )
    return [[label, round(score, 4), state, *short_box(box)] for label, score, state, box in zip(*parts)]


def _levels(rows: Sequence["Compared"], images: int) -> list[dict[str, Any]]:
    # as the detections are rounded, or one at the very score would be hidden
    levels = [{"text": "from the score where its F1 is best", "scores": [round(row.score, 4) for row in rows]}]
    ordered = [row.detections.scores.sort(descending=True).values for row in rows]
    most = max(map(len, ordered))
    for count in COUNTS:
        rank = round(count * images)
        if not 0 < rank < most:
            continue
        scores = [round(float(own[min(rank, len(own)) - 1]), 4) if len(own) else 0.0 for own in ordered]
        levels.append({"text": f"its best {count:g} an image, on average", "scores": scores})
    return [*levels, {"text": "all that it kept", "scores": [None] * len(rows)}]
