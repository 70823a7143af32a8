"""One split of one root of a data set, opened: what a format gives to `DetectionDataset`."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from detkit.data.annotations import Fault
from detkit.data.index import Index
from detkit.data.masks import MaskCheck, Masks
from detkit.data.values import MAX_SIDE, path_below
from detkit.errors import UserError


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
            raise UserError(f"{self.root} has no image {missing[0]}, which its list names{and_more(len(missing) - 1)}")
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


def and_more(count: int) -> str:
    """Return what stands behind the first of several problems."""
    return f" ({count} more such problems)" if count else ""
