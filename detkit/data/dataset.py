"""What a data set is, whatever its format: images, their objects, and the names of both.

A format has a `Source`, which opens one split of one root, and a `DetectionDataset` of such sources. All else, here,
is the same for every format. Images are touched only by `image`, so annotations alone are enough for scoring.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import torch

from detkit.data.annotations import Annotations
from detkit.data.image_file import decode_image
from detkit.data.index import Index
from detkit.data.masks import faults_of
from detkit.data.sample import Sample
from detkit.data.source import Source, and_more
from detkit.data.source_objects import read_objects
from detkit.errors import UserError
from detkit.rle import RLE
from detkit.structures import TruthSet

EVERYTHING = ""  # the split of all images, in VOC and YOLO layout: of roots that have no splits


@dataclass(frozen=True)
class Record:
    """One annotated image.

    annotations: its objects; boxes are float32 and inside the image, labels those of the data set. width, height: of
    the upright image; as the annotation says where the image is missing, 0 where that says nothing.
    """

    id: str
    path: Path
    annotations: Annotations
    width: int
    height: int


class DetectionDataset(ABC):
    """Images and objects of one or several splits.

    sources: (root, split) pairs, see `parse_splits`. classes: names in label order; None takes those of the
    annotations, in the format's order. Ids are unique: where there are several roots, the root's name stands
    before each; where two splits use a name for different images, the split's. ids: of each source those images alone.

    Raises UserError: missing data set or split, empty split, image without annotation, broken annotation or box,
    class that is not in `classes`; each names file and object. A box without any area is left out (the official COCO
    annotations have such).
    """

    split_file = "{}"  # what lists the images of a split

    def __init__(
        self,
        sources: Sequence[tuple[Path, str]],
        classes: Sequence[str] | None = None,
        name: str | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        if not sources:
            raise UserError("no split of the data set is given; an example: data.test=[test]")
        self.sources: tuple[tuple[Path, str], ...] = tuple((Path(root), split) for root, split in sources)
        self._open(self.open_sources(self.sources), classes, name, ids)

    def _open(
        self,
        opened: list[Source],
        classes: Sequence[str] | None,
        name: str | None,
        ids: Sequence[str] | None = None,
    ) -> None:
        """Take over what the sources hold, see `__init__`."""
        self.opened = opened
        self.listed = ids is not None
        for source in self.opened:
            if ids is not None:
                source.keep(ids)
            if source.problems:
                raise UserError(f"{source.root}/{source.problems[0]}{and_more(len(source.problems) - 1)}")
            if not len(source.rows):
                raise UserError(f"{source.root}: the split {source.split} is empty")
        if classes is None:
            classes = self.own_classes(self.indices)
        if len(set(classes)) != len(classes):
            raise UserError(f"data.classes: a class is named twice in {', '.join(classes)}")
        self.classes: tuple[str, ...] = tuple(classes)
        self.name = name or "+".join(f"{source.root.name}/{source.split}".removesuffix("/") for source in opened)
        self._source = np.repeat(np.arange(len(self.opened)), [len(source.rows) for source in self.opened])
        self._row = np.concatenate([source.rows for source in self.opened])
        self.ids: tuple[str, ...] = tuple(self._name_images())
        # (len, 2) int64 width and height of each upright image, see Source
        self.sizes = np.concatenate([source.sizes[source.rows] for source in self.opened])
        parts = [read_objects(source, self.classes) for source in self.opened]
        self._annotations = Annotations.concatenate([annotations for annotations, _ in parts])
        self._counts = np.concatenate([counts for _, counts in parts])
        self._first = np.concatenate([[0], np.cumsum(self._counts)])

    @classmethod
    @abstractmethod
    def splits(cls, root: Path) -> list[str]:
        """Return the names of the splits of a root."""

    @classmethod
    @abstractmethod
    def open_sources(cls, sources: Sequence[tuple[Path, str]]) -> list[Source]:
        """Open each (root, split)."""

    @classmethod
    def own_classes(cls, indices: Sequence[Index]) -> list[str]:
        """Return the classes of annotations in label order: as the files have them, those of the first file first."""
        return list(dict.fromkeys(str(name) for index in indices for name in index.classes))

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, key: SupportsIndex) -> Sample: ...
    @overload
    def __getitem__(self, key: slice) -> list[Sample]: ...
    def __getitem__(self, key: Any) -> Sample | list[Sample]:
        """Read image `key`, counted from the end where it is negative, and its objects; of a slice a list of such."""
        if isinstance(key, slice):
            return [self[i] for i in range(len(self))[key]]
        i = range(len(self))[key]  # IndexError where there is none
        record, pixels = self.load(i, (0, i))
        known = record.annotations
        return Sample(
            boxes=torch.from_numpy(known.boxes.copy()),
            labels=torch.from_numpy(known.labels.copy()),
            ignore=torch.from_numpy(known.ignore.copy()),
            classes=self.classes,
            id=record.id,
            path=record.path,
            pixels=pixels,
            extra={name: torch.from_numpy(value.copy()) for name, value in known.extra.items()},
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self)} images, {len(self.classes)} classes>"

    @property
    def indices(self) -> list[Index]:
        """The annotations that the sources are part of."""
        return [source.index for source in self.opened]

    def path(self, i: int) -> Path:
        """Return the path of image `i`."""
        return self.opened[self._source[i]].image_path(int(self._row[i]))

    def record(self, i: int) -> Record:
        """Return what is known of image `i`; touches no image."""
        annotations = self._annotations.take(slice(self._first[i], self._first[i + 1]))
        width, height = self.sizes[i].tolist()
        return Record(self.ids[i], self.path(i), annotations, width, height)

    def image(self, i: int) -> np.ndarray:
        """Return image `i` as (H, W, 3) RGB uint8, upright, of its size in `sizes`. UserError names the file where that
        fails."""
        pixels = decode_image(self.path(i))
        size = tuple(self.sizes[i].tolist())
        if all(size) and pixels.shape[1::-1] != size:
            height, width = pixels.shape[:2]
            raise UserError(
                f"{self.path(i)}: the image is {width}x{height}, but was {size[0]}x{size[1]} when it was opened"
            )
        return pixels

    def load(self, i: int, seed: Sequence[int]) -> tuple[Record, np.ndarray]:
        """Return what is known of image `i`, and its pixels. seed: of random numbers, where reading draws any."""
        return self.record(i), self.image(i)

    def open_masks(self) -> None:
        """Find the objects' masks, before processes share the work; UserError where a split has none."""
        for source in self.opened:
            _ = source.masks

    def masks(self, i: int) -> tuple[RLE, ...]:
        """Return the masks of the objects of image `i`, in the order of its record. UserError names one that is wrong.

        A split's are found when one is first asked for, an image's read when it is.
        """
        source, row = self.opened[self._source[i]], int(self._row[i])
        numbers = self._annotations.number[self._first[i] : self._first[i + 1]].tolist()
        width, height = self.sizes[i].tolist()
        masks = source.masks(row, numbers, (height, width))
        for number, text in faults_of(numbers, masks):
            raise UserError(f"{source.root}/{source.file(row)}: {source.unit} {number}: {text}")
        return tuple(mask for mask in masks if not isinstance(mask, str))

    def truth(self, use_difficult: bool = False, masks: bool = False) -> TruthSet:
        """Return all objects, flat; `ignore` marks crowds and, unless they are used, difficult objects.

        masks: whether they come with their masks.
        """
        objects = self._annotations
        return TruthSet(
            boxes=torch.from_numpy(objects.boxes.copy()),
            labels=torch.from_numpy(objects.labels.copy()),
            ignore=torch.from_numpy(objects.ignored(use_difficult)),
            image=torch.from_numpy(np.repeat(np.arange(len(self)), self._counts)),
            ids=self.ids,
            classes=self.classes,
            area=torch.from_numpy(objects.area.copy()),
            difficult=torch.from_numpy(objects.difficult.copy()),
            truncated=torch.from_numpy(objects.truncated.copy()),
            masks=tuple(mask for i in range(len(self)) for mask in self.masks(i)) if masks else None,
            extra={name: torch.from_numpy(value.copy()) for name, value in objects.extra.items()},
        )

    def ranked_truth(self, masks: bool = False) -> TruthSet:
        """Return `truth`, its images in the order in which a metric takes detections of equal scores."""
        return self.truth(masks=masks)

    def fingerprint(self) -> dict[str, Any]:
        """Return numbers and digests that tell images and objects, as they are trained on, from others; no pixels."""
        objects = self._annotations
        flags = [objects.difficult, objects.crowd, *(value for _, value in sorted(objects.extra.items()))]
        parts = {
            "classes": [json.dumps(self.classes).encode()],
            "ids": [json.dumps(self.ids).encode()],
            "boxes": [self._counts.astype(np.int64), objects.boxes],
            "labels": [objects.labels],
            "flags": flags,
        }
        digests = {name: _digest(content) for name, content in parts.items()}
        return {"images": len(self), "objects": len(objects), **digests}

    def _name_images(self) -> list[str]:
        """The ids of all images, unique."""
        sources = [self.opened[number] for number in self._source.tolist()]
        names = [str(source.index.ids[row]) for source, row in zip(sources, self._row.tolist())]
        if len({source.root for source in self.opened}) > 1:
            names = [f"{source.root.name}/{name}" for source, name in zip(sources, names)]
        counts = Counter(names)
        if max(counts.values()) == 1:
            return names
        repeated = Counter((name, self.path(i)) for i, name in enumerate(names) if counts[name] > 1)
        for (name, _), count in repeated.items():
            if count > 1:
                raise UserError(f"{self.name}: image {name} is listed twice")
        return [f"{Path(source.split).stem}/{name}" for source, name in zip(sources, names)]


def _digest(parts: Sequence[bytes | np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def notes_on(datasets: Sequence[DetectionDataset]) -> list[str]:
    """Return lines on what users should know of data sets that can be used nevertheless."""
    sources = [source for dataset in datasets for source in dataset.opened]
    lines = list(dict.fromkeys(note for source in sources for note in source.notes))
    others = {source.paths[row]: text for source in sources for row, text in source.other_sizes().items()}
    for path, text in [*others.items()][:1]:
        what = "images have another size" if len(others) > 1 else "image has another size"
        lines.append(f"{len(others)} {what} than stated, and their own counts, such as {path}: {text}")
    if not any(np.diff(source.index.first)[source.rows].any() for source in sources):
        names = ", ".join(source.split for source in sources)
        lines.append(f"there is no object in any image of {names}")
    return lines


def parse_splits(root: str | Path, splits: Sequence[str]) -> list[tuple[Path, str]]:
    """`SPLIT` or `SUBDIR/SPLIT` below `root` -> (folder of the data set, split); a .json or .txt file stays a path."""
    root = Path(root)
    sources = []
    for spec in splits:
        if spec.endswith((".json", ".txt")):
            sources.append((root, spec))
            continue
        folder, _, split = spec.rpartition("/")
        sources.append((root / folder if folder else root, split))
    return sources
