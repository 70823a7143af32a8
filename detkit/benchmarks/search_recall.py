"""Selective search beside OpenCV's on the images of a data set: seconds, boxes, recall and MABO."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from detkit.benchmarks.contrib import ContribSearch
from detkit.data.dataset import DetectionDataset
from detkit.errors import UserError
from detkit.evaluation.recall import proposal_recall
from detkit.proposals.selective_search import selective_search
from detkit.structures import TruthSet

MIN_SIZE = 20  # pixels of a side of detkit's boxes; OpenCV's are compared as they are, and cut so too
NUMBERS = (100, 300, 500, 1000, 2000, None)
IOUS = (0.5, 0.7)
DETKIT, CONTRIB, LARGE = "detkit", "opencv-contrib", f"opencv-contrib, sides >= {MIN_SIZE}"


@dataclass(frozen=True)
class Row:
    """The boxes of one method, the best so many of each image: their mean number, the recall at IOUS, and MABO.

    best: "100", "all", or "equal", where the boxes of each image are as many as the method with fewer has.
    """

    method: str
    best: str
    boxes: float
    recall: tuple[float, ...]
    mabo: float


@dataclass(frozen=True)
class Comparison:
    """seconds: the processor's of each image, by method. rows: those of equal numbers in pairs, detkit first."""

    seconds: dict[str, list[float]]
    rows: list[Row]


def compare(
    dataset: DetectionDataset, mode: str, python: str, progress: Callable[[int, int], None] | None = None
) -> Comparison:
    """Search each image by detkit and by OpenCV, in turn, each on one core.

    python: one that has opencv-contrib. progress: called with (done, total). Raises UserError where it does not run, or
    where there are no objects to find.
    """
    truth = dataset.truth()
    if bool(truth.ignore.all()):
        raise UserError(f"{dataset.name} has no objects to find")
    contrib = ContribSearch(python)
    cv2.setNumThreads(1)
    selective_search(dataset.image(0), mode)  # compiles
    ours, theirs = [], []
    seconds: dict[str, list[float]] = {DETKIT: [], CONTRIB: []}
    for i in range(len(dataset)):
        image = dataset.image(i)
        start = time.process_time()
        ours.append(selective_search(image, mode, min_size=MIN_SIZE))
        seconds[DETKIT].append(time.process_time() - start)
        took, boxes = contrib.search(image, mode)
        theirs.append(boxes)
        seconds[CONTRIB].append(took)
        if progress is not None:
            progress(i + 1, len(dataset))
    contrib.close()
    return Comparison(seconds, rows(ours, theirs, truth))


def rows(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], truth: TruthSet) -> list[Row]:
    """Measure both lists of (N, 4) boxes, best first, one entry an image."""
    large = [boxes[(boxes[:, 2:] - boxes[:, :2] >= MIN_SIZE).all(1)] for boxes in theirs]
    methods = {DETKIT: ours, CONTRIB: theirs, LARGE: large}
    found = [row for name, boxes in methods.items() for row in _rows(name, boxes, truth)]
    for other in (CONTRIB, LARGE):
        counts = [min(len(a), len(b)) for a, b in zip(ours, methods[other])]
        for name in (DETKIT, other):
            found += _rows(name, [part[:count] for part, count in zip(methods[name], counts)], truth, equal=True)
    return found


def _rows(name: str, boxes: Sequence[np.ndarray], truth: TruthSet, equal: bool = False) -> list[Row]:
    result = proposal_recall(boxes, truth, (None,) if equal else NUMBERS, IOUS)
    return [
        Row(name, "equal" if equal else "all" if number is None else str(number), count, tuple(recall), mabo)
        for number, count, recall, mabo in zip(
            result.numbers, result.boxes.tolist(), result.recall.tolist(), result.mabo.tolist()
        )
    ]
