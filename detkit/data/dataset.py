"""What a data set is, whatever its format: images, their objects, and the names of both.

A format has a `Source`, which opens one split of one root, and a `DetectionDataset` of such sources. All else, here,
is the same for every format. Images are touched only by `image`, so annotations alone are enough for scoring.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from detkit.data.image_file import decode_image
from detkit.data.index import Index
from detkit.errors import UserError, did_you_mean
from detkit.structures import TruthSet


@dataclass(frozen=True)
class Record:
    """One annotated image.

    boxes: (N, 4) float32 continuous xyxy pixels, inside the image. labels: (N,) int64. difficult, crowd, truncated:
    (N,) bool. area: (N,) float64 pixels, of the box where the annotation has none. width, height: as the annotation
    says, 0 where it says nothing.
    """

    id: str
    path: Path
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    truncated: np.ndarray
    area: np.ndarray
    width: int
    height: int

    @property
    def ignore(self) -> np.ndarray:
        """(N,) bool, True for what evaluation leaves out: difficult objects and crowds."""
        return self.difficult | self.crowd


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
        """Return the path of the image of an image of the index, whether it is there or not."""

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
        self.ids: tuple[str, ...] = tuple(self._name_images())
        parts = [_select(source, self.classes) for source in self._opened]
        self._source = np.repeat(np.arange(len(parts)), [len(source.rows) for source in self._opened])
        self._row = np.concatenate([source.rows for source in self._opened])
        self._sizes = np.concatenate([part.sizes for part in parts])
        self._first = np.concatenate([[0], np.cumsum(np.concatenate([part.counts for part in parts]))])
        self._boxes = np.concatenate([part.boxes for part in parts])
        self._labels = np.concatenate([part.labels for part in parts])
        self._difficult = np.concatenate([part.difficult for part in parts])
        self._crowd = np.concatenate([part.crowd for part in parts])
        self._truncated = np.concatenate([part.truncated for part in parts])
        self._area = np.concatenate([part.area for part in parts])

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
    def sizes(self) -> np.ndarray:
        """(len, 2) int64 width and height of each image as the annotation says, 0 where it says nothing."""
        return self._sizes

    @property
    def areas(self) -> np.ndarray:
        """(G,) float64 area of each object in pixels, in the order of `truth`; of its box where none is annotated."""
        return self._area

    @property
    def indices(self) -> list[Index]:
        """The annotations that the sources are part of."""
        return [source.index for source in self._opened]

    def path(self, i: int) -> Path:
        """Return the path of image `i`."""
        return self._opened[self._source[i]].image_path(int(self._row[i]))

    def record(self, i: int) -> Record:
        """Return what is known of image `i`; touches no image."""
        own = slice(self._first[i], self._first[i + 1])
        return Record(
            id=self.ids[i],
            path=self.path(i),
            boxes=self._boxes[own],
            labels=self._labels[own],
            difficult=self._difficult[own],
            crowd=self._crowd[own],
            truncated=self._truncated[own],
            area=self._area[own],
            width=int(self._sizes[i, 0]),
            height=int(self._sizes[i, 1]),
        )

    def image(self, i: int) -> np.ndarray:
        """Return image `i` as (H, W, 3) RGB uint8, EXIF applied. UserError names the file where that fails."""
        width, height = self._sizes[i].tolist()
        return decode_image(self.path(i), (width, height))

    def truth(self, use_difficult: bool = False) -> TruthSet:
        """Return all objects, flat; `ignore` marks crowds and, unless they are used, difficult objects."""
        counts = np.diff(self._first)
        return TruthSet(
            boxes=torch.from_numpy(self._boxes.copy()),
            labels=torch.from_numpy(self._labels.copy()),
            ignore=torch.from_numpy(self._crowd | (self._difficult & (not use_difficult))),
            image=torch.from_numpy(np.repeat(np.arange(len(self)), counts)),
            ids=self.ids,
            classes=self.classes,
            area=torch.from_numpy(self._area.copy()),
            difficult=torch.from_numpy(self._difficult.copy()),
            truncated=torch.from_numpy(self._truncated.copy()),
        )

    def _name_images(self) -> list[str]:
        """The ids of all images, unique."""
        several = len({source.root for source in self._opened}) > 1
        names = [
            [(f"{source.root.name}/" if several else "") + name for name in source.index.ids[source.rows].tolist()]
            for source in self._opened
        ]
        counts = Counter(name for own in names for name in own)
        if max(counts.values()) == 1:
            return [name for own in names for name in own]
        seen: dict[tuple[str, Path], None] = {}
        for source, own in zip(self._opened, names):
            for name, row in zip(own, source.rows.tolist()):
                if counts[name] > 1:
                    image = (name, source.image_path(row))
                    if image in seen:
                        raise UserError(f"{self.name}: image {name} is listed twice")
                    seen[image] = None
        return [f"{Path(source.split).stem}/{name}" for source, own in zip(self._opened, names) for name in own]


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


def clip_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip continuous xyxy boxes (N, 4) to images of `sizes` (N, 2) width, height; -> float32.

    Also returns (N,) bool, True where nothing of a box is inside. A size of 0 is unknown and does not bound.
    """
    low = np.maximum(boxes[:, :2], 0)
    high = np.minimum(boxes[:, 2:], np.where(sizes > 0, sizes, np.inf))
    return np.concatenate([low, high], 1).astype(np.float32), np.logical_or(*(high <= low).T)


def objects_of(index: Index, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the objects of some images of an index, image by image, and the place in `rows` that owns each."""
    counts = np.diff(index.first)[rows]
    ends = np.cumsum(counts)
    # objects of image f are first[f], first[f] + 1, ...: the same ranges, written without a loop
    objects = np.arange(counts.sum()) + np.repeat(index.first[rows] - (ends - counts), counts)
    return objects, np.repeat(np.arange(len(rows)), counts)


@dataclass(frozen=True)
class _Part:
    """The objects of one source, ready for use; counts: (F,) objects of each image."""

    sizes: np.ndarray
    counts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    truncated: np.ndarray
    area: np.ndarray


def _more(count: int) -> str:
    return f" ({count} more such problems)" if count else ""


def _select(source: Source, classes: tuple[str, ...]) -> _Part:
    """Take what a source lists out of its index; UserError for what is broken in it."""
    index, rows = source.index, source.rows
    broken = rows[index.problems[rows] != ""]
    if len(broken):
        line = str(index.problems[broken[0]]).splitlines()[0]
        raise UserError(f"{source.root}/{source.file(int(broken[0]))}: {line}{_more(len(broken) - 1)}")

    objects, owner = objects_of(index, rows)
    full = (index.boxes[objects, 2:] > index.boxes[objects, :2]).all(1)
    objects, owner = objects[full], owner[full]

    def refuse(bad: np.ndarray, reason: str) -> None:
        item = objects[k := int(bad.argmax())]
        name = str(index.classes[index.names[item]])
        where = f"{source.root}/{source.file(int(rows[owner[k]]))}: {source.unit} {index.number[item]}"
        hint = did_you_mean(name, classes) if name not in classes else ""
        raise UserError(f"{where}: {reason.format(name=name)}{hint}")

    place = {name: label for label, name in enumerate(classes)}
    labels = np.array([place.get(str(name), -1) for name in index.classes], dtype=np.int64)[index.names[objects]]
    if (labels < 0).any():
        refuse(labels < 0, "class {name!r} is not in data.classes")
    boxes, outside = clip_boxes(index.boxes[objects], index.sizes[rows][owner])
    if outside.any():
        refuse(outside, "the box of this {name} lies outside the image")
    area = index.area[objects]
    return _Part(
        sizes=index.sizes[rows],
        counts=np.bincount(owner, minlength=len(rows)),
        boxes=boxes,
        labels=labels,
        difficult=index.difficult[objects],
        crowd=index.crowd[objects],
        truncated=index.truncated[objects],
        area=np.where(np.isnan(area), box_area(boxes), area),
    )


def box_area(boxes: np.ndarray) -> np.ndarray:
    """(N, 4) boxes -> (N,) float64 areas."""
    low, high = np.split(boxes.astype(np.float64), 2, axis=1)
    return (high - low).prod(1)


def decimals(values: np.ndarray) -> np.ndarray:
    """Return float32 numbers as float64 of the fewest digits that tell them apart: 473.07, not 473.07000732."""
    return values.astype(np.str_).astype(np.float64)
