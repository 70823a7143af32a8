"""Small data sets for tests: written as one line an object, or random."""

from collections.abc import Sequence

import numpy as np
import torch

from detkit.structures import DetectionSet, TruthSet

Box = tuple[float, float, float, float]


def truth_set(
    objects: Sequence[tuple[str, str, Box] | tuple[str, str, Box, bool]],
    ids: Sequence[str] = ("a", "b"),
    classes: Sequence[str] = ("cat", "dog"),
) -> TruthSet:
    """Rows of (image, class, box) or (image, class, box, difficult)."""
    return TruthSet(
        boxes=torch.tensor([row[2] for row in objects], dtype=torch.float32).reshape(-1, 4),
        labels=torch.tensor([classes.index(row[1]) for row in objects], dtype=torch.int64),
        ignore=torch.tensor([len(row) > 3 and row[3] for row in objects], dtype=torch.bool),
        image=torch.tensor([ids.index(row[0]) for row in objects], dtype=torch.int64),
        ids=tuple(ids),
        classes=tuple(classes),
    )


def detection_set(
    rows: Sequence[tuple[str, str, float, Box]],
    ids: Sequence[str] = ("a", "b"),
    classes: Sequence[str] = ("cat", "dog"),
    dtype: torch.dtype = torch.float32,
) -> DetectionSet:
    """Rows of (image, class, score, box)."""
    return DetectionSet(
        boxes=torch.tensor([row[3] for row in rows], dtype=dtype).reshape(-1, 4),
        scores=torch.tensor([row[2] for row in rows], dtype=dtype),
        labels=torch.tensor([classes.index(row[1]) for row in rows], dtype=torch.int64),
        image=torch.tensor([ids.index(row[0]) for row in rows], dtype=torch.int64),
        ids=tuple(ids),
        classes=tuple(classes),
    )


def random_sets(random: np.random.Generator) -> tuple[DetectionSet, TruthSet]:
    """Few places, sizes and scores, so that ties, exact halves, duplicates and hits are common."""
    images, classes = int(random.integers(1, 5)), int(random.integers(1, 4))
    ids, names = [f"i{k}" for k in range(images)], [f"c{k}" for k in range(classes)]

    def boxes(count: int) -> np.ndarray:
        corner = random.integers(0, 4, (count, 2)) * random.choice([1, 2])
        return np.concatenate([corner, corner + random.integers(1, 6, (count, 2))], 1).astype(np.float32)

    count = int(random.choice([0, 1, 5, 20]))
    truth = TruthSet(
        torch.from_numpy(boxes(count)),
        torch.from_numpy(random.integers(0, classes, count)),
        torch.from_numpy(random.random(count) < random.choice([0, 0.3, 1], p=[0.4, 0.5, 0.1])),
        torch.from_numpy(random.integers(0, images, count)),
        tuple(ids),
        tuple(names),
    )
    count = int(random.choice([0, 1, 8, 60]))
    found = DetectionSet(
        torch.from_numpy(boxes(count)),
        torch.from_numpy(random.choice([0.1, 0.25, 0.5, 0.7, 0.9, -1.0], count)).float(),
        torch.from_numpy(random.integers(0, classes, count)),
        torch.from_numpy(random.integers(0, images, count)),
        tuple(random.permutation(ids).tolist()),
        tuple(random.permutation(names).tolist()),
    )
    return found, truth
