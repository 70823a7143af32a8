"""What a data set is, whatever its format: images, their objects, and the names of both.

A format has a `Source`, which opens one split of one root, and a `DetectionDataset` of such sources. All else, here,
is the same for every format. Images are touched only by `image`, so annotations alone are enough for scoring.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detkit.data.annotations import Annotations
from detkit.data.image_file import decode_image
from detkit.data.index import Index
from detkit.errors import UserError, did_you_mean
from detkit.structures import TruthSet


@dataclass(frozen=True)
class Record:
    """One annotated image.

    annotations: its objects; boxes are float32 and inside the image, labels those of the data set. width, height: as
    the annotation says, 0 where it says nothing.
    """

    id: str
    path: Path
    annotations: Annotations
    width: int
    height: int


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong in `file`, relative to its root; object: its number there, 0 where no single is meant.

    unit: what such a number counts.
    """

    file: str
    object: int
    kind: str
    text: str
    unit: str = field(default="object", compare=False)

    def __str__(self) -> str:
        return f"{self.file}: " + (f"{self.unit} {self.object}: " if self.object else "") + self.text


class Source(ABC):
    """One split of one root, opened. Opening raises UserError only where there is nothing to open.

    index: the annotations. rows: (n,) int64 the images that the split lists, in its order. problems: what is wrong with
    the list itself. unit: what the files call an object. slack: how many pixels a box may reach beyond its image before
    a check says so. origin: how the files number the first pixel.
    """

    unit = "object"
    slack = 0.0
    origin = 0

    def __init__(self, root: Path, split: str, index: Index, rows: np.ndarray, problems: Sequence[Problem]) -> None:
        self.root, self.split, self.index = root, split, index
        self.rows = np.asarray(rows, dtype=np.int64)
        self.problems = tuple(problems)

    @abstractmethod
    def file(self, row: int) -> str:
        """Return what holds the annotations of an image of the index, relative to the root."""

    @abstractmethod
    def image_path(self, row: int) -> Path:
        """Return the path of an image of the index, whether it is there or not."""

    def strays(self) -> list[Problem]:
        """Return the annotations that lie among this split's and belong to no image."""
        return []


class DetectionDataset(ABC):
    """Images and objects of one or several splits.

    sources: (root, split) pairs, see `parse_splits`. classes: names in label order; None takes those of the
    annotations, in the format's order. Ids are unique: where there are several roots, the root's name stands
    before each; where two splits use a name for different images, the split's.

    Raises UserError: missing data set or split, empty split, image without annotation, broken annotation or box,
    class that is not in `classes`; each names file and object. A box without any area is left out (the official COCO
    annotations have such).
    """

    split_file = "{}"  # what lists the images of a split

    def __init__(
        self, sources: Sequence[tuple[Path, str]], classes: Sequence[str] | None = None, name: str | None = None
    ) -> None:
        if not sources:
            raise UserError("no split of the data set is given; an example: data.test=[test]")
        self.sources: tuple[tuple[Path, str], ...] = tuple((Path(root), split) for root, split in sources)
        self._opened = self.open_sources(self.sources)
        for source in self._opened:
            if source.problems:
                raise UserError(f"{source.root}/{source.problems[0]}{_more(len(source.problems) - 1)}")
            if not len(source.rows):
                raise UserError(f"{source.root}: the split {source.split} is empty")
        if classes is None:
            classes = self.own_classes(self.indices)
        if len(set(classes)) != len(classes):
            raise UserError(f"data.classes: a class is named twice in {', '.join(classes)}")
        self.classes: tuple[str, ...] = tuple(classes)
        self.name = name or "+".join(f"{root.name}/{split}" for root, split in self.sources)
        self._source = np.repeat(np.arange(len(self._opened)), [len(source.rows) for source in self._opened])
        self._row = np.concatenate([source.rows for source in self._opened])
        self.ids: tuple[str, ...] = tuple(self._name_images())
        # (len, 2) int64 width and height of each image as the annotation says, 0 where it says nothing
        self.sizes = np.concatenate([source.index.sizes[source.rows] for source in self._opened])
        parts = [_read_objects(source, self.classes) for source in self._opened]
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

    @property
    def indices(self) -> list[Index]:
        """The annotations that the sources are part of."""
        return [source.index for source in self._opened]

    def path(self, i: int) -> Path:
        """Return the path of image `i`."""
        return self._opened[self._source[i]].image_path(int(self._row[i]))

    def record(self, i: int) -> Record:
        """Return what is known of image `i`; touches no image."""
        annotations = self._annotations.take(slice(self._first[i], self._first[i + 1]))
        width, height = self.sizes[i].tolist()
        return Record(self.ids[i], self.path(i), annotations, width, height)

    def image(self, i: int) -> np.ndarray:
        """Return image `i` as (H, W, 3) RGB uint8, EXIF applied. UserError names the file where that fails."""
        width, height = self.sizes[i].tolist()
        return decode_image(self.path(i), (width, height))

    def truth(self, use_difficult: bool = False) -> TruthSet:
        """Return all objects, flat; `ignore` marks crowds and, unless they are used, difficult objects."""
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
            extra={name: torch.from_numpy(value.copy()) for name, value in objects.extra.items()},
        )

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
        sources = [self._opened[number] for number in self._source.tolist()]
        names = [str(source.index.ids[row]) for source, row in zip(sources, self._row.tolist())]
        if len({source.root for source in self._opened}) > 1:
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


def _read_objects(source: Source, classes: tuple[str, ...]) -> tuple[Annotations, np.ndarray]:
    """Return the objects of a source's images, image by image, and how many (n,) each image has.

    Boxes are clipped, labels index `classes`, objects without area are left out. Raises UserError for what is broken.
    """
    index, rows = source.index, source.rows
    _refuse_problems(source)
    objects, image = index.objects_of(rows)
    boxes = index.objects.boxes[objects]
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
    objects, image = objects[has_area], image[has_area]
    annotations = index.objects.take(objects)

    label_of = {name: label for label, name in enumerate(classes)}
    labels = np.array([label_of.get(name, -1) for name in index.classes.tolist()], dtype=np.int64)[annotations.labels]

    def first(wrong: np.ndarray) -> tuple[int, str]:
        """The first wrong object, and what a message calls it."""
        i = int(wrong.argmax())
        return i, f"{source.root}/{source.file(int(rows[image[i]]))}: {source.unit} {annotations.number[i]}"

    if (labels < 0).any():
        i, where = first(labels < 0)
        name = str(index.classes[annotations.labels[i]])
        raise UserError(f"{where}: class {name!r} is not in data.classes{did_you_mean(name, classes)}")
    boxes, outside = _clip_boxes(annotations.boxes, index.sizes[rows][image])
    if outside.any():
        i, where = first(outside)
        raise UserError(f"{where}: the box of this {classes[labels[i]]} lies outside the image")
    counts = np.bincount(image, minlength=len(rows))
    return replace(annotations, boxes=boxes, labels=labels).with_areas(), counts


def _refuse_problems(source: Source) -> None:
    """Raise UserError, in one line, where the annotations of an image of a source are broken."""
    problems = source.index.problems[source.rows]
    broken = np.flatnonzero(problems != "")
    if len(broken):
        line = str(problems[broken[0]]).splitlines()[0]
        file = source.file(int(source.rows[broken[0]]))
        raise UserError(f"{source.root}/{file}: {line}{_more(len(broken) - 1)}")


def _more(count: int) -> str:
    return f" ({count} more such problems)" if count else ""


def _clip_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip continuous xyxy boxes (N, 4) to images of `sizes` (N, 2) width, height; -> float32.

    Also returns (N,) bool, True where nothing of a box is inside. A size of 0 is unknown and does not bound.
    """
    low = np.maximum(boxes[:, :2], 0)
    high = np.minimum(boxes[:, 2:], np.where(sizes > 0, sizes, np.inf))
    outside = np.any(high <= low, axis=1)
    return np.concatenate([low, high], 1).astype(np.float32), outside
