"""A data set format of your own: a function that reads it.

    @register_format("lines")
    def read(root): return {"train": [AnnotatedImage("a.jpg", [Object("cat", (10, 20, 110, 90))])], "test": [...]}

Then `data.format=lines` names it, see `imports` in config.py for how detkit comes to know it.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detkit.data.annotations import FLAGS, AnnotatedImage, AnnotatedObject, Fault
from detkit.data.dataset import DetectionDataset
from detkit.data.finding import Finder
from detkit.data.formats import DATASETS
from detkit.data.image_sizes import image_sizes
from detkit.data.index import Index, make_index
from detkit.data.source import Source
from detkit.errors import UserError, did_you_mean

Object = AnnotatedObject
Reader = Callable[[Path], Mapping[str, Sequence[AnnotatedImage]]]


def register_format(name: str) -> Callable[[Reader], Reader]:
    """Decorator: make a function from a root to the images of each split the format `name`.

    Images may be of several splits. Classes are by default those of all of a root's objects, sorted.
    """

    def register(read: Reader) -> Reader:
        if name in DATASETS:
            raise ValueError(f"format {name!r} is registered twice")
        DATASETS[name] = type(f"{name}_dataset", (_CustomDataset,), {"read": staticmethod(read)})
        return read

    return register


class _CustomSource(Source):
    states_size = False

    def file(self, row: int) -> str:
        return str(self.index.files[row])


class _CustomDataset(DetectionDataset):
    @staticmethod
    @abstractmethod
    def read(root: Path) -> Mapping[str, Sequence[AnnotatedImage]]:
        """Return the images of each split."""

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        return list(cls.read(root))

    @classmethod
    def open_sources(cls, sources: Sequence[tuple[Path, str]]) -> list[Source]:
        contents, opened = {root: cls.read(root) for root, _ in sources}, []
        indices = {root: _images(root, _index(splits)) for root, splits in contents.items()}
        for root, split in sources:
            if split not in contents[root]:
                raise UserError(f"no split {split!r} in {root}{did_you_mean(split, contents[root])}")
            index, paths, sizes = indices[root]
            row_of = {file: row for row, file in enumerate(index.files.tolist())}
            rows = [row_of[_name(image)] for image in contents[root][split]]
            opened.append(_CustomSource(root, split, index, rows, paths, sizes, split))
        return opened

    @classmethod
    def own_classes(cls, indices: Sequence[Index]) -> list[str]:
        return sorted(super().own_classes(indices))


def _images(root: Path, index: Index) -> tuple[Index, list[str], np.ndarray]:
    """An index, and the paths and sizes of its images."""
    finder = Finder(root)
    paths = [finder.below(file) for file in index.files.tolist()]
    return index, paths, image_sizes(finder, "", paths)


def _name(image: AnnotatedImage) -> str:
    return str(PurePosixPath(image.file))


def _index(splits: Mapping[str, Sequence[AnnotatedImage]]) -> Index:
    """The annotations of all images of a root, each once."""
    images = {_name(image): image for images in splits.values() for image in images}
    classes = list(dict.fromkeys(str(item.name) for image in images.values() for item in image.objects))
    shapes: dict[str, tuple[int, ...]] = {}  # of the extra fields
    read = []
    for file, image in images.items():
        objects, wrong = [], []
        for number, item in enumerate(image.objects, 1):
            faults = []
            if not _is_box(item.box):
                faults.append(f"{tuple(item.box)} is no box x1, y1, x2, y2")
            extra = {}
            for name, value in item.extra.items():
                fault = _extra_fault(value, shapes.setdefault(name, np.shape(value)))
                if fault:
                    faults.append(f"extra field {name!r} {fault}")
                else:
                    extra[name] = value
            wrong.extend(Fault(number, f"{item.name}: {fault}") for fault in faults)
            box = tuple(map(float, item.box)) if _is_box(item.box) else (0.0,) * 4
            flags = {flag: bool(getattr(item, flag)) for flag in FLAGS}
            objects.append(item._replace(box=box, extra=extra, number=number, **flags))
        read.append(AnnotatedImage(file, objects, image.size, wrong))
    return make_index(read, classes)


def _is_box(box: Sequence[float]) -> bool:
    return len(box) == 4 and all(map(math.isfinite, box)) and box[0] <= box[2] and box[1] <= box[3]


def _extra_fault(value: Any, shape: tuple[int, ...]) -> str:
    """What is wrong with the value of an extra field whose first value has `shape`, "" where nothing is."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        return f"is {value!r}, neither a number nor an array of numbers"
    if array.shape != shape:
        return f"has shape {array.shape}, but {shape} elsewhere"
    return ""
