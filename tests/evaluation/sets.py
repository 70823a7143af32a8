"""Small data sets for tests, written as one line an object."""

from collections.abc import Sequence

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
