"""The objects of a single image: from a VOC XML, or from the data set that the image lies in."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from detkit.data.annotations import Annotations
from detkit.data.dataset import DetectionDataset
from detkit.data.formats import find_format, find_splits, open_root
from detkit.data.index import texts
from detkit.data.voc import VOCRoot
from detkit.data.voc_index import parse_annotation
from detkit.errors import UserError, did_you_mean
from detkit.rle import RLE

LEVELS = 4  # folders above an image that may be its data set's


@dataclass(frozen=True)
class Truth(Annotations):
    """The objects of an image, boxes in float32, labels as a detector has them.

    size: (width, height) as the annotation says, 0 where it says nothing. origin: the file or data set it is from.
    masks: (N,) of RLE, None where they are not known, or not asked for.
    """

    size: tuple[int, int]
    origin: str
    masks: np.ndarray | None = None


def read_truth(path: Path, classes: Sequence[str]) -> Truth | None:
    """Read a VOC XML. Raises UserError, in one line, for a file that is none, or has objects of other classes."""
    try:
        content = parse_annotation(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"no annotation {path}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    for fault in content.faults:
        raise UserError(f"{path}: " + (f"object {fault.number}: " if fault.number else "") + fault.text)
    for item in content.objects:
        if item.name not in classes:
            text = f"object {item.number} is of class {item.name!r}, which the detector does not know"
            raise UserError(f"{path}: {text}{did_you_mean(str(item.name), classes)}")
    return _truth(Annotations.from_objects(content.objects, classes), classes, classes, content.size, str(path))


def find_truth(image: Path, classes: Sequence[str], masks: bool = False) -> Truth | None:
    """Return what a data set around the image says of it; None where there is none, or it knows other classes.

    masks: whether objects come with their masks, where they have such.
    """
    image = image.resolve()
    for root in image.parents[:LEVELS]:
        try:
            if find_format(root) == "voc":
                return _in_voc(VOCRoot(root), image, classes, masks)
            for split in find_splits(root):
                truth = _in_split(root, split, image, classes, masks)
                if truth is not None:
                    return truth
        except UserError:  # no data set, or one that is of no use here: the image can be explained without it
            continue
    return None


def _in_voc(opened: VOCRoot, image: Path, classes: Sequence[str], masks: bool) -> Truth | None:
    """What an annotation says, of whatever split or none."""
    index, layout = opened.index, opened.layout
    for row, path in enumerate(opened.paths):
        if os.path.basename(path) == image.name and os.path.realpath(path) == str(image) and not index.faults(row):
            objects = index.objects.take(slice(index.first[row], index.first[row + 1]))
            width, height = opened.sizes[row].tolist()
            read, found = opened.open_masks() if masks else None, None
            if read is not None:
                found = _known(partial(read, row, objects.number.tolist(), (height, width)))
            origin = f"{layout.folder}/{layout.names[row]}"
            return _truth(objects, index.classes.tolist(), classes, (width, height), origin, found)
    return None


def _in_split(root: Path, split: str, image: Path, classes: Sequence[str], masks: bool) -> Truth | None:
    dataset = open_root(root, [split])
    for i in range(len(dataset)):  # once a command, on the host
        if dataset.path(i).name == image.name and dataset.path(i).resolve() == image:
            return truth_of(dataset, i, classes, masks)
    return None


def truth_of(dataset: DetectionDataset, index: int, classes: Sequence[str], masks: bool = False) -> Truth | None:
    """Return the objects of an image of a data set; None where the detector does not know one's class.

    masks: as in `find_truth`.
    """
    record = dataset.record(index)
    found = _known(partial(dataset.masks, index)) if masks else None
    return _truth(record.annotations, dataset.classes, classes, (record.width, record.height), dataset.name, found)


def _known(masks: Callable[[], Sequence[RLE | str]]) -> np.ndarray | None:
    """Return masks (N,), None where one is missing or wrong: the image can be explained without them."""
    try:
        found = masks()
    except UserError:
        return None
    return None if any(isinstance(mask, str) for mask in found) else texts(found)


def _truth(
    objects: Annotations,
    names: Sequence[str],
    classes: Sequence[str],
    size: tuple[int, int],
    origin: str,
    masks: np.ndarray | None = None,
) -> Truth | None:
    """Objects whose labels index `names` as a detector of `classes` has them, None where it does not know one."""
    if any(names[label] not in classes for label in objects.labels.tolist()):
        return None
    labels = np.array([classes.index(names[label]) for label in objects.labels.tolist()], np.int64)
    objects = replace(objects, labels=labels, boxes=objects.boxes.astype(np.float32)).with_areas()
    return Truth(**vars(objects), size=size, origin=origin, masks=masks)
