"""What a data set is, whatever its format: images, their objects, and the names of both.

A format has a `Source`, which opens one split of one root, and a `DetectionDataset` of such sources. All else, here,
is the same for every format. Images are touched only by `image`, so annotations alone are enough for scoring.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import torch

from detkit.data.annotations import Annotations, Fault
from detkit.data.image_file import decode_image
from detkit.data.index import Index
from detkit.data.masks import MaskCheck, Masks, faults_of
from detkit.data.sample import Sample
from detkit.data.values import MAX_SIDE, path_below
from detkit.errors import UserError, did_you_mean
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

    index: the annotations. rows: (n,) int64 the images that the split lists, in its order. paths: of all F images of
    the index, whether they are there or not. sizes: (F, 2) int64 width and height of the upright images, as stated
    where they cannot be read, 0 where that says nothing. listed: the file or folder that lists the split's images.
    problems: what is wrong with the list itself. faults: of images, by row, beside those of the index. notes: lines on
    what was read otherwise than as written.

    unit: what the files call an object. slack: how many pixels a box may reach beyond its image before a check says so.
    origin: how the files number the first pixel. states_size: whether an annotation should say how large its image is.
    """

    unit = "object"
    slack = 0.0
    origin = 0
    states_size = True

    def __init__(
        self,
        root: Path,
        split: str,
        index: Index,
        rows: Sequence[int] | np.ndarray,
        paths: list[str],
        sizes: np.ndarray,
        listed: str,
        problems: Sequence[Problem] = (),
        faults: Mapping[int, Sequence[Fault]] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.root, self.split, self.index, self.paths = root, split, index, paths
        self.rows = np.asarray(rows, dtype=np.int64)
        self.notes, self._faults, self._own = tuple(notes), faults or {}, sizes
        self.sizes = sizes.copy()
        for row in np.flatnonzero((sizes == 0).all(1)).tolist():
            self.sizes[row] = _as_stated(index.stated[row])
        counts = Counter(self.paths[row] for row in self.rows.tolist())
        twice = [
            Problem(listed, 0, "duplicate image", f"image {path_below(path, root)} is listed {_times(count)}")
            for path, count in counts.items()
            if count > 1
        ]
        self.problems = (*problems, *twice)

    @abstractmethod
    def file(self, row: int) -> str:
        """Return what holds the annotations of an image of the index, relative to the root."""

    def image_path(self, row: int) -> Path:
        """Return the path of an image of the index, whether it is there or not."""
        return Path(self.paths[row])

    def keep(self, ids: Sequence[str]) -> None:
        """Keep the images of these ids alone, in their order; UserError where one is not there."""
        row_of = {str(self.index.ids[row]): row for row in self.rows.tolist()}
        if missing := [name for name in ids if name not in row_of]:
            raise UserError(f"{self.root} has no image {missing[0]}, which its list names{_more(len(missing) - 1)}")
        self.rows = np.array([row_of[name] for name in ids], dtype=np.int64)

    def strays(self) -> list[Problem]:
        """Return the annotations that lie among this split's and belong to no image."""
        return []

    @cached_property
    def masks(self) -> Masks:
        """The masks of the objects, found at first use; UserError where there are none."""
        return self.find_masks()

    def find_masks(self) -> Masks:
        """See `masks`; for formats that have any."""
        raise UserError(
            f"{self.root}: it has no masks of objects, which this detector learns; COCO's annotations and VOC's "
            "SegmentationObject have them"
        )

    def mask_check(self) -> MaskCheck | None:
        """Return what checks the masks of an image's objects, by its row; None where the root has none."""
        return None

    def annotated(self, row: int) -> tuple[list[int], np.ndarray, tuple[int, int]]:
        """Return the numbers and boxes (N, 4) of an image's objects, as annotated, and its height and width."""
        own = slice(self.index.first[row], self.index.first[row + 1])
        width, height = self.sizes[row].tolist()
        return self.index.objects.number[own].tolist(), self.index.objects.boxes[own], (height, width)

    def faults(self, row: int) -> list[Problem]:
        """Return what is wrong with the annotations of an image."""
        faults = [*self.index.faults(row), *self._faults.get(row, ())]
        kinds = ("broken file", "broken box")
        return [Problem(self.file(row), one.number, kinds[one.number > 0], one.text, self.unit) for one in faults]

    def broken(self) -> np.ndarray:
        """Return the rows, in the split's order, of which `faults` says something."""
        return self.rows[np.isin(self.rows, [*self.index.fault_image.tolist(), *self._faults])]

    def other_sizes(self) -> dict[int, str]:
        """Return the rows of images whose annotations state another size than they have, and a line on each."""
        pairs = zip(self.rows.tolist(), self._own[self.rows].tolist(), self.index.stated[self.rows].tolist())
        return {
            row: f"the image is {width}x{height}, its annotation says {stated}"
            for row, (width, height), stated in pairs
            if stated and width and stated != f"{width}x{height}"
        }


def _as_stated(stated: str) -> tuple[int, int]:
    width, height = map(int, stated.split("x")) if stated else (0, 0)
    return (width, height) if max(width, height) < MAX_SIDE else (0, 0)


def _times(count: int) -> str:
    return "twice" if count == 2 else f"{count} times"


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
                raise UserError(f"{source.root}/{source.problems[0]}{_more(len(source.problems) - 1)}")
            if not len(source.rows):
                raise UserError(f"{source.root}: the split {source.split} is empty")
        if classes is None:
            classes = self.own_classes(self.indices)
        if len(set(classes)) != len(classes):
            raise UserError(f"data.classes: a class is named twice in {', '.join(classes)}")
        self.classes: tuple[str, ...] = tuple(classes)
        self.name = name or "+".join(f"{source.root.name}/{source.split}" for source in opened)
        self._source = np.repeat(np.arange(len(self.opened)), [len(source.rows) for source in self.opened])
        self._row = np.concatenate([source.rows for source in self.opened])
        self.ids: tuple[str, ...] = tuple(self._name_images())
        # (len, 2) int64 width and height of each upright image, see Source
        self.sizes = np.concatenate([source.sizes[source.rows] for source in self.opened])
        parts = [_read_objects(source, self.classes) for source in self.opened]
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


def _read_objects(source: Source, classes: tuple[str, ...]) -> tuple[Annotations, np.ndarray]:
    """Return the objects of a source's images, image by image, and how many (n,) each image has.

    Boxes are clipped, labels index `classes`, objects without area, in float32 as well, are left out. Raises UserError
    for what is broken.
    """
    index, rows = source.index, source.rows
    _refuse_problems(source)
    objects, image = index.objects_of(rows)
    boxes = index.objects.boxes[objects]
    has_area = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
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
    boxes, outside = _clip_boxes(annotations.boxes, source.sizes[rows][image])
    if outside.any():
        i, where = first(outside)
        raise UserError(f"{where}: the box of this {classes[labels[i]]} lies outside the image")
    has_area = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
    counts = np.bincount(image[has_area], minlength=len(rows))
    return replace(annotations, boxes=boxes, labels=labels).take(np.flatnonzero(has_area)).with_areas(), counts


def _refuse_problems(source: Source) -> None:
    """Raise UserError, in one line, where the annotations of an image of a source are broken."""
    broken = source.broken()
    if len(broken):
        raise UserError(f"{source.root}/{source.faults(int(broken[0]))[0]}{_more(len(broken) - 1)}")


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
