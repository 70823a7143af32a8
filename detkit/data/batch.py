"""Batches: the one place where images and their objects are stacked."""

from collections.abc import Sequence

import numpy as np
import torch

from detkit.data.annotations import Annotations
from detkit.data.transforms import pad
from detkit.structures import Images, Proposals, Targets


def make_batch(
    pixels: Sequence[np.ndarray],
    original: Sequence[tuple[int, int]],
    ids: Sequence[str] | None = None,
    regions: Sequence[np.ndarray] | None = None,
    region_scores: Sequence[np.ndarray] | None = None,
    count: int | None = None,
) -> Images:
    """Stack network inputs (h, w, 3) uint8, as a Transform makes them, into one batch.

    original: (height, width) of the image that each was made from. ids: "0", "1", ... by default. regions: boxes
    (R, 4) float32 of each image, in pixels of the input, which become the batch's proposals, with their scores (R,)
    where there are any; they are padded to the most that an image has, or cut and padded to `count`.
    """
    sizes = torch.tensor(original, dtype=torch.int64).reshape(-1, 2)
    names = tuple(map(str, range(len(pixels))) if ids is None else ids)
    proposals = None
    if regions is not None:
        scores = None if region_scores is None else [torch.from_numpy(values) for values in region_scores]
        proposals = Proposals.pad([torch.from_numpy(boxes) for boxes in regions], scores, count)
    return Images(*pad(pixels), sizes, names, proposals)


def make_targets(annotations: Sequence[Annotations], use_difficult: bool = False) -> Targets:
    """Stack the objects of images; `ignore` marks crowds and, unless they are used, difficult objects."""
    objects = [
        (torch.from_numpy(own.boxes), torch.from_numpy(own.labels), torch.from_numpy(own.ignored(use_difficult)))
        for own in annotations
    ]
    extra = [{name: torch.from_numpy(value) for name, value in own.extra.items()} for own in annotations]
    return Targets.pad(objects, extra)
