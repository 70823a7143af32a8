"""What a kind of file is to the campaign."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from detkit.data.dataset import DetectionDataset
from tests.campaign.commands import Broken

Files = dict[str, bytes]
"""Contents by path, relative to the folder of a format."""


@dataclass(frozen=True)
class Format:
    """One kind of file that detkit reads.

    prepare: write valid files into the current folder, return what `draw` damages. draw: damaged files. read: use the
    files of the current folder as a user would, by commands.run; raises Broken. cases: how many the long campaign
    draws at scale 1. short: how many the tests draw.
    """

    name: str
    prepare: Callable[[], Any]
    draw: Callable[[Random, Any], Files]
    read: Callable[[], None]
    cases: int
    short: int


def check_objects(dataset: DetectionDataset) -> None:
    """Raise Broken unless the objects of an opened data set are finite, not empty, and inside their images."""
    truth = dataset.truth()
    boxes = truth.boxes
    if not boxes.isfinite().all() or not (boxes[:, 2:] > boxes[:, :2]).all() or (boxes < 0).any():
        raise Broken(f"boxes accepted: {boxes[:5].tolist()}")
    size = torch.from_numpy(dataset.sizes)[truth.image]
    if ((size > 0) & (boxes[:, 2:] > size)).any():
        raise Broken(f"boxes beyond their images accepted: {boxes[:5].tolist()} in {size[:5].tolist()}")
    if truth.area is not None and not (truth.area >= 0).all():
        raise Broken(f"areas accepted: {truth.area[:5].tolist()}")
    for names in (truth.ids, truth.classes):
        if len(set(names)) != len(names):
            raise Broken(f"a name accepted twice: {names[:5]}")


def same(one: Any, other: Any) -> bool:
    """Whether plain data and tensors are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8))
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def read_file(name: str) -> bytes:
    """Return the content of a file of the current folder."""
    return Path(name).read_bytes()
