"""Data sets that are given in Python: detkit's own, or a torch Dataset of (image, target) as torchvision's references
have them."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image

from detkit.data.annotations import AnnotatedImage, AnnotatedObject, Annotations
from detkit.data.dataset import DetectionDataset, Record
from detkit.data.index import Index, make_index
from detkit.data.source import Source
from detkit.errors import UserError, in_a_line

SLACK = 1.0  # pixels that a box may reach beyond its image; it is clipped

Progress = Callable[[int, int], None]


@runtime_checkable
class TorchDataset(Protocol):
    """What torch's map-style data sets have. An item is (image, {"boxes", "labels"}).

    image: a uint8 tensor (3, H, W), a float one from 0 to 1, an RGB image of Pillow, or a uint8 array (H, W, 3).
    boxes: (n, 4) x1, y1, x2, y2 in pixels, (0, 4) for none. labels: (n,) whole numbers from 0. `iscrowd` (n,), if it is
    there, marks crowds, which are not trained on.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class GivenDataset(DetectionDataset):
    """A torch Dataset as one of detkit's.

    Each image is read once at the start, to check all of it. Random numbers of an item, as of augmentation in it, are
    functions of its place in the stream, whichever process reads it, so that a resumed run repeats them.
    Raises UserError, in one line, for an item that is not as TorchDataset says.
    """

    def __init__(
        self, data: TorchDataset, name: str, classes: Sequence[str] | None = None, progress: Progress | None = None
    ) -> None:
        own = getattr(data, "classes", None)
        classes = classes if classes is not None else own
        if classes is None:
            raise UserError(f"{name}: what are its classes? give their names, as in classes=['cat', 'dog']")
        names = [str(each) for each in classes]
        self._data, self._labels, self.name = data, range(len(names)), name
        count = len(data)
        images, sizes = [], np.zeros((count, 2), np.int64)
        for i in range(count):
            pixels, objects = self._item(i, (0, i))
            images.append(_annotated(str(i), objects, names))
            sizes[i] = pixels.shape[1::-1]
            if progress is not None:
                progress(i + 1, count)
        index = make_index(images, names, ids=[str(i) for i in range(count)])
        self._open([_GivenSource(name, index, sizes)], names, name)

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        return []  # it is in no root

    @classmethod
    def open_sources(cls, sources: Sequence[tuple[Path, str]]) -> list[Source]:
        return []

    def check_steady(self) -> None:
        """Raise UserError where an item, read again, is another: what is found would be compared with other boxes."""
        (pixels, objects), (again, others) = self._item(0, (0, 0)), self._item(0, (0, 0))
        if not (np.array_equal(pixels, again) and np.array_equal(objects.boxes, others.boxes)):
            raise UserError(
                f"{self.name}[0] is another each time it is read; evaluation needs images that stay the same"
            )

    def image(self, i: int) -> np.ndarray:
        return self._item(i, (0, i))[0]

    def load(self, i: int, seed: Sequence[int]) -> tuple[Record, np.ndarray]:
        pixels, objects = self._item(i, seed)
        height, width = pixels.shape[:2]
        boxes = np.clip(objects.boxes, 0, np.array((width, height) * 2)).astype(np.float32)
        kept = np.flatnonzero((boxes[:, 2:] > boxes[:, :2]).all(1))
        objects = Annotations.of(boxes[kept], objects.labels[kept], crowd=objects.crowd[kept])
        return Record(self.ids[i], self.path(i), objects, width, height), pixels

    def _item(self, i: int, seed: Sequence[int]) -> tuple[np.ndarray, Annotations]:
        where = f"{self.name}[{i}]"
        _seed_all(seed)
        try:
            item = self._data[i]
        except Exception as error:
            raise UserError(f"{where}: {in_a_line(error)}") from error
        if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[1], Mapping):
            raise UserError(f"{where} is {_kind(item)}; it should be (image, {{'boxes': ..., 'labels': ...}})")
        missing = [key for key in ("boxes", "labels") if key not in item[1]]
        if missing:
            raise UserError(f"{where}: its target has no {missing[0]!r}, only {', '.join(map(repr, item[1]))}")
        pixels = _pixels(item[0], where)
        return pixels, self._objects(item[1], pixels.shape, where)

    def _objects(self, target: Mapping[str, Any], shape: tuple[int, ...], where: str) -> Annotations:
        layout = getattr(target["boxes"], "format", None)  # of torchvision's BoundingBoxes
        if layout is not None and getattr(layout, "value", layout) != "XYXY":
            raise UserError(f"{where}: boxes are {getattr(layout, 'value', layout)}; they should be XYXY")
        boxes, labels = _array(target["boxes"], np.float64), _array(target["labels"], np.float64)
        if boxes.size == 0:
            boxes = boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise UserError(f"{where}: boxes have the shape {boxes.shape}; it should be (n, 4)")
        if labels.shape != (len(boxes),):
            raise UserError(f"{where}: labels have the shape {labels.shape}; it should be ({len(boxes)},), one a box")
        height, width = shape[:2]
        is_box = np.isfinite(boxes).all(axis=1) & np.all(boxes[:, 2:] >= boxes[:, :2], axis=1)
        inside = np.all((boxes >= -SLACK) & (boxes <= np.array((width, height) * 2) + SLACK), axis=1)
        if not np.all(is_box & inside):
            row = int(np.argmin(is_box & inside))
            reason = f"reaches beyond the image of {width}x{height}" if is_box[row] else "is no box"
            raise UserError(
                f"{where}: box {row} {reason}: {boxes[row].tolist()}; it should be x1, y1, x2, y2 in pixels"
            )
        if len(boxes) and boxes.max() <= 1 < min(height, width):
            raise UserError(f"{where}: boxes lie between 0 and 1: {boxes[0].tolist()}; they should be in pixels")
        wrong = [label for label in labels.tolist() if not math.isfinite(label) or label not in self._labels]
        if wrong:
            hint = "; torchvision's references count from 1: subtract 1" if wrong[0] == len(self._labels) else ""
            raise UserError(f"{where}: label {wrong[0]:g}; labels count from 0 to {len(self._labels) - 1}{hint}")
        crowd = _array(target["iscrowd"], bool) if "iscrowd" in target else np.zeros(len(boxes), bool)
        if crowd.shape != labels.shape:
            raise UserError(f"{where}: iscrowd has the shape {crowd.shape}; it should be ({len(boxes)},), one a box")
        return Annotations.of(boxes, labels.astype(np.int64), crowd=crowd)


class _GivenSource(Source):
    states_size = False

    def __init__(self, name: str, index: Index, sizes: np.ndarray) -> None:
        rows = np.arange(len(sizes))
        super().__init__(Path(), name, index, rows, index.files.tolist(), sizes, name)

    def file(self, row: int) -> str:
        return f"{self.split}[{row}]"


def as_dataset(
    data: Any, name: str, classes: Sequence[str] | None = None, progress: Progress | None = None
) -> DetectionDataset:
    """Return what is given for training, `train`, or for evaluation, any other name, as a data set.

    UserError, in one line, where it can be none, or has other classes.
    """
    if not isinstance(data, DetectionDataset):
        if not isinstance(data, TorchDataset):
            raise UserError(f"{name} is {_kind(data)}; it should be a data set with a length and items")
        dataset = GivenDataset(data, name, classes, progress)
        if name != "train":
            dataset.check_steady()
        return dataset
    if classes is not None and data.classes != tuple(classes):
        raise UserError(
            f"{name} has the classes {', '.join(data.classes)}, not {', '.join(classes)}; open it with them"
        )
    return data


def _seed_all(seed: Sequence[int]) -> None:
    """Seed what an item may draw from."""
    number = int(np.random.default_rng(seed).integers(2**32))
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 (which a user's code may use)
    torch.manual_seed(number)


def _pixels(image: Any, where: str) -> np.ndarray:
    """An image as (H, W, 3) RGB uint8."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    tensor = isinstance(image, torch.Tensor)
    pixels = image.detach().cpu().numpy() if tensor else np.asarray(image)
    wanted = "(3, H, W)" if tensor else "(H, W, 3)"
    if pixels.ndim != 3 or pixels.shape[0 if tensor else 2] != 3 or not pixels.size:
        raise UserError(f"{where}: the image has the shape {pixels.shape}; it should be {wanted}")
    pixels = pixels.transpose(1, 2, 0) if tensor else pixels
    if pixels.dtype.kind == "f":
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"{where}: pixels from {low:.3g} to {high:.3g}; floats should be from 0 to 1, and not normalised: "
                "the detector does that"
            )
        return np.ascontiguousarray((pixels * 255).round().astype(np.uint8))
    if pixels.dtype != np.uint8:
        raise UserError(f"{where}: pixels are {pixels.dtype}; they should be uint8, or floats from 0 to 1")
    return np.ascontiguousarray(pixels)


def _array(values: Any, kind: Any) -> np.ndarray:
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values
    return np.asarray(values).astype(kind)


def _annotated(file: str, objects: Annotations, names: Sequence[str]) -> AnnotatedImage:
    rows = enumerate(zip(objects.labels.tolist(), objects.boxes.tolist(), objects.crowd.tolist()))
    items = [
        AnnotatedObject(names[int(label)], tuple(box), crowd=crowd, number=number)
        for number, (label, box, crowd) in rows
    ]
    return AnnotatedImage(file, items)


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"
