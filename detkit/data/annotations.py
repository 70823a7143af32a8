"""The objects of images as numpy arrays: what readers make, data sets hold, the loader and the writers take."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import numpy as np

from detkit.errors import UserError

FLAGS = ("difficult", "crowd", "truncated")


class AnnotatedObject(NamedTuple):
    """One object as its file has it.

    name: of its class, or the class's number in files that have numbers. box: x1, y1, x2, y2, continuous pixels of the
    upright image, whose left edge is 0. difficult: not counted in evaluation. crowd: nor trained on.

    extra: fields of a user's own, such as {"track": 7}: numbers, flags, or arrays of one shape for all objects; floats
    become float32. They come with the objects in `Targets.extra` and `TruthSet.extra`, 0 or False where an object has
    none. Augmentation and resizing drop them with their objects and never change them.

    truncated: as annotated. area: square pixels, NaN where the file says nothing. number: what the file calls the
    object: its position from 1, its line, or its id. mask: (H, W) bool, of objects that detkit draws.
    """

    name: str | int
    box: tuple[float, ...]
    difficult: bool = False
    crowd: bool = False
    extra: Mapping[str, Any] = {}
    truncated: bool = False
    area: float = math.nan
    number: int = 0
    mask: Any = None


class Fault(NamedTuple):
    """What is wrong with the annotations of an image. number: of the object, see AnnotatedObject; 0: no single one."""

    number: int
    text: str


@dataclass(frozen=True)
class AnnotatedImage:
    """One image as its file has it.

    file: its name or path. size: the width and height that it states, 0 where it states none; what counts is the
    image's own. faults: everything that could not be read.
    """

    file: str
    objects: Sequence[AnnotatedObject] = ()
    size: tuple[int, int] = (0, 0)
    faults: Sequence["Fault"] = ()


@dataclass(frozen=True)
class Annotations:
    """N objects.

    boxes: (N, 4) continuous xyxy in pixels. labels: (N,) int64. difficult, crowd, truncated: (N,) bool. area: (N,)
    float64 square pixels, of the box where nothing else is annotated. number: (N,) int64, see AnnotatedObject. extra:
    (N, ...) fields of a user's own, such as track ids.
    """

    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray
    truncated: np.ndarray
    area: np.ndarray
    number: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def ignore(self) -> np.ndarray:
        """(N,) bool, True for what evaluation leaves out: difficult objects and crowds."""
        return self.difficult | self.crowd

    def ignored(self, use_difficult: bool) -> np.ndarray:
        """Return (N,) bool: crowds and, unless they are used, difficult objects."""
        return self.crowd.copy() if use_difficult else self.ignore

    def take(self, index: np.ndarray | slice) -> Self:
        """Return the objects that an index, a mask or a slice names."""
        arrays = {name: value[index] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return replace(self, **arrays, extra={name: value[index] for name, value in self.extra.items()})

    def with_areas(self) -> Self:
        """Return the objects with the areas of the boxes where none is annotated."""
        return replace(self, area=np.where(np.isnan(self.area), box_area(self.boxes), self.area))

    @classmethod
    def of(cls, boxes: np.ndarray, labels: np.ndarray, **others: Any) -> Self:
        """Return objects of which little is known: no flags, the boxes' areas, numbers from 1; `others` say else."""
        false = np.zeros(len(labels), dtype=bool)
        values: dict[str, Any] = {"area": box_area(boxes), "number": np.arange(1, len(labels) + 1), **others}
        return cls(boxes, labels, **{**dict.fromkeys(FLAGS, false), **values})

    @classmethod
    def from_objects(cls, objects: Sequence[AnnotatedObject], classes: Sequence[str] | None = None) -> "Annotations":
        """Turn objects into arrays, boxes in float64; labels index `classes`, or are the numbers that names are."""
        columns = dict(zip(AnnotatedObject._fields, zip(*objects) if objects else [()] * len(AnnotatedObject._fields)))
        names = columns["name"]
        if classes is not None:
            label_of = {name: label for label, name in enumerate(classes)}
            names = [label_of[name] for name in names]
        return Annotations(
            boxes=np.array(columns["box"], dtype=np.float64).reshape(-1, 4),
            labels=np.array(names, dtype=np.int64),
            area=np.array(columns["area"], dtype=np.float64),
            number=np.array(columns["number"], dtype=np.int64),
            extra=_extra_arrays(columns["extra"]),
            **{flag: np.array(columns[flag], dtype=bool) for flag in FLAGS},
        )

    @classmethod
    def concatenate(cls, items: Sequence["Annotations"]) -> "Annotations":
        """Join objects. Where only some have an extra field, it is 0 or False for the others."""
        parts = [one.arrays() for one in items]
        arrays = {}
        for name, like in {name: value for part in parts for name, value in part.items()}.items():
            values = [
                part[name] if name in part else np.zeros((len(one), *like.shape[1:]), like.dtype)
                for one, part in zip(items, parts)
            ]
            if len({value.shape[1:] for value in values}) > 1:
                raise UserError(f"objects have the extra field {name.removeprefix('extra.')!r} in different shapes")
            arrays[name] = np.concatenate(values)
        return cls.from_arrays(arrays)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name, extra fields as `extra.NAME`."""
        arrays = {name: value for name, value in vars(self).items() if name != "extra"}
        return arrays | {f"extra.{name}": value for name, value in self.extra.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Annotations":
        """Turn what `arrays` returns into objects again."""
        extra = {name.removeprefix("extra."): value for name, value in arrays.items() if name.startswith("extra.")}
        return Annotations(**{name: arrays[name] for name in arrays if not name.startswith("extra.")}, extra=extra)


def _extra_arrays(extra: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Turn the extra fields of each object into one array a field; 0 or False where an object has none."""
    examples = {name: np.asarray(value) for own in extra for name, value in own.items()}
    arrays = {}
    for name, example in examples.items():
        array = np.array([own.get(name, np.zeros_like(example)) for own in extra])
        # as boxes are: a network computes in float32
        arrays[name] = array.astype(np.float32) if array.dtype == np.float64 else array
    return arrays


def box_area(boxes: np.ndarray) -> np.ndarray:
    """Return the areas (N,) float64 of boxes (N, 4)."""
    width, height = (boxes[:, 2:].astype(np.float64) - boxes[:, :2]).T
    return width * height
