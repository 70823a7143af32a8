"""Kinds of training runs, on a small data set that detkit draws, and what tells two runs apart."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from detkit.checkpoints import checkpoint
from detkit.data.formats import open_root
from detkit.data.proposal_store import make_manifest, write_store
from detkit.data.shapes import draw_shapes
from tests.campaign.children import REPOSITORY
from tests.campaign.formats.base import same

DATA = Path("data")
SPLITS = {"train": 40, "val": 12, "test": 12}
FEW = {"train": 6, "val": 2, "test": 2}
SHOWN = 3  # differences that are named of a file
UNLIKE = ("seconds", "images_per_second", "data_share", "checkpoint", "time")
"""Keys of what a run leaves that depend on the clock or the folder."""
GIVEN = (f"data.proposals=[{','.join(f'{DATA}/{split}.npz' for split in SPLITS)}]", "data.proposal_count=50")


@dataclass(frozen=True)
class Kind:
    """A training run: a config of configs/shapes and changes to it. splits: images of each split."""

    config: str
    changes: tuple[str, ...]
    splits: dict[str, int]

    def command(self, folder: Path, workers: int = 0) -> list[str]:
        """Return the arguments of `detkit train` that begin the run in `folder`, from the data set's parent."""
        config = REPOSITORY / f"configs/shapes/{self.config}.yaml"
        data = ("data.format=voc", f"data.root={DATA}", "train.device=cpu", f"train.workers={workers}")
        return [str(config), *data, *self.changes, "--out", str(folder)]


def _kind(config: str, iterations: int, *changes: str) -> Kind:
    often = ("train.save_every=5", "train.evaluate_every=20", f"train.iterations={iterations}")
    return Kind(config, (*often, *changes), SPLITS)


KINDS = {
    "ssd": _kind("ssd", 60, "train.batch=4"),
    "ssd_ema": _kind("ssd", 60, "train.batch=4", "train.ema=0.9", "train.accumulate=2"),
    "yolov1": _kind("yolov1", 60, "train.batch=4"),
    "yolov2": _kind("yolov2", 60, "train.batch=4", "model.prior_images=120"),
    "yolov3": _kind("yolov3", 60, "train.batch=4"),
    "retinanet": _kind("retinanet", 30, "train.batch=2"),
    "rfcn": _kind("rfcn", 30, "train.batch=2"),
    "faster_rcnn": _kind("faster_rcnn", 30, "train.batch=2"),
    "alternating": _kind("faster_rcnn", 10, "train.batch=2", "model.training=alternating"),
    "fast_rcnn": _kind("fast_rcnn", 30, "train.batch=2", *GIVEN),
    "rcnn": _kind("rcnn", 25, "train.batch=2", "model.fit_images=30", *GIVEN),
    "sppnet": _kind("sppnet", 25, "train.batch=2", "model.fit_images=30", *GIVEN),
    "tiny": Kind(
        "ssd", ("train.iterations=6", "train.batch=2", "train.save_every=2", "train.evaluate_every=3"), FEW
    ),  # for the tests
}


def prepare(kind: str, folder: Path) -> None:
    """Draw the data set of a kind into `folder`/DATA, with proposals: boxes around the objects and at random."""
    os.chdir(folder)
    draw_shapes(DATA, KINDS[kind].splits)
    random = np.random.default_rng(0)
    for split in KINDS[kind].splits:
        dataset = open_root(DATA, [split])
        boxes = [_proposals(random, dataset.record(i).annotations.boxes, dataset.sizes[i]) for i in range(len(dataset))]
        write_store(DATA / f"{split}.npz", dataset.ids, boxes, manifest=make_manifest("random", {}, dataset.ids))


def _proposals(random: np.random.Generator, objects: np.ndarray, size: np.ndarray) -> np.ndarray:
    """(60, 4) boxes inside an image of (width, height), most of them around its objects."""
    low = random.uniform(0, size - 16, (60, 2))
    boxes = np.concatenate([low, np.minimum(low + random.uniform(8, 60, (60, 2)), size)], 1)
    if len(objects):
        boxes[:40] = np.clip(objects[np.arange(40) % len(objects)] + random.normal(0, 4, (40, 4)), 0, np.tile(size, 2))
    wide = (boxes[:, 2:] - boxes[:, :2] > 2).all(1)
    return boxes[wide].astype(np.float32)


@dataclass(frozen=True)
class Trial:
    """A run that was killed, and gone on with. how: when. signals: that were sent. differs: from the undisturbed run;
    left: files that it has and the other has not."""

    how: str
    differs: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    signals: int = 1

    @property
    def equal(self) -> bool:
        """Whether the result is that of the undisturbed run."""
        return not self.differs

    def __str__(self) -> str:
        left = [f"left behind: {', '.join(self.left)}"] if self.left else []
        return f"{self.how}: {'; '.join(self.differs + left) or 'as the undisturbed run'}"


def differences(reference: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Return how a finished run differs from another, and which files it has left that the other has not."""
    names, other_names = _names(reference), _names(folder)
    found = [f"{name} is missing" for name in sorted(names - other_names)]
    for name in sorted(names & other_names):
        if name.endswith(tuple(READERS)):
            try:
                one, other = (READERS[Path(name).suffix](path / name) for path in (reference, folder))
            except Exception as error:
                found.append(f"{name}: {type(error).__name__}: {error}")
                continue
            found += [f"{name}{where}" for where in islice(_unlike(one, other), SHOWN)]
    return found, sorted(other_names - names)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _store(path: Path) -> dict[str, Any]:
    """Return the arrays of a store, and its manifest as data: the name of the checkpoint in it is the folder's."""
    with np.load(path) as arrays:
        values = {name: (array.dtype.str, array.tolist()) for name, array in arrays.items() if name != "manifest"}
        return values | {"manifest": json.loads(str(arrays["manifest"]))}


READERS = {
    ".pt": checkpoint.load,
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".npz": _store,
}
"""By suffix, how a file is read whose contents are compared; of others it is enough that they are there."""


def _unlike(one: Any, other: Any, where: str = "") -> Iterator[str]:
    """Yield the places where two contents differ, but for what depends on the clock."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys((*one, *other)):
            if key not in UNLIKE:
                yield from _unlike(one.get(key), other.get(key), f"{where}.{key}")
    elif isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        if len(one) != len(other):
            yield f"{where}: {len(other)} entries, not {len(one)}"
        for i, pair in enumerate(zip(one, other)):
            yield from _unlike(*pair, f"{where}[{i}]")
    elif not same(one, other):
        yield where
