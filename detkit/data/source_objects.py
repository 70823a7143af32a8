"""The objects of a source as a data set has them: labels of its classes, boxes inside the images."""

from dataclasses import replace

import numpy as np

from detkit.data.annotations import Annotations
from detkit.data.source import Source, and_more
from detkit.errors import UserError, did_you_mean


def read_objects(source: Source, classes: tuple[str, ...]) -> tuple[Annotations, np.ndarray]:
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
        raise UserError(f"{source.root}/{source.faults(int(broken[0]))[0]}{and_more(len(broken) - 1)}")


def _clip_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip continuous xyxy boxes (N, 4) to images of `sizes` (N, 2) width, height; -> float32.

    Also returns (N,) bool, True where nothing of a box is inside. A size of 0 is unknown and does not bound.
    """
    low = np.maximum(boxes[:, :2], 0)
    high = np.minimum(boxes[:, 2:], np.where(sizes > 0, sizes, np.inf))
    outside = np.any(high <= low, axis=1)
    return np.concatenate([low, high], 1).astype(np.float32), outside
