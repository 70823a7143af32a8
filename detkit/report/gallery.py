"""The images of a report: which ones, their thumbnails, and what is drawn on them."""

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from detkit.data.dataset import DetectionDataset
from detkit.errors import UserError
from detkit.evaluation.errors import KINDS, STATES, ErrorAnalysis
from detkit.structures import DetectionSet, TruthSet

IMAGES = 12  # of each kind
SIDE = 480  # longest side of a thumbnail in pixels
BYTES = 40_000  # of a thumbnail at most, so that all of a report's are less than 5 MB
BOXES = 60  # detections of an image, and objects, that are shown at most
QUALITIES = (80, 65, 50, 35, 20)


def gallery(
    dataset: DetectionDataset, detections: DetectionSet, truth: TruthSet, errors: ErrorAnalysis
) -> dict[str, Any]:
    """Return the images of each kind, as plain data: {"kinds": {kind: [[image, box], ...]}, "images": [...]}.

    Of each kind the IMAGES worst, of as many images: the errors of best score, and the largest of missed objects;
    what is right is shown by the best of each class. `box` is a detection of the image, or an object where the kind
    is missed.
    """
    image = image_of(detections, truth)
    chosen: dict[str, Tensor] = {}
    for kind in ("right", *KINDS):
        if kind == "missed":
            area = (truth.boxes[:, 2:] - truth.boxes[:, :2]).prod(1)
            chosen[kind] = _one_an_image(errors.missed.nonzero().squeeze(1), -area, truth.image)
        else:
            rows = (errors.state == STATES.index(kind)).nonzero().squeeze(1)
            key = -detections.scores
            chosen[kind] = _one_an_image(rows, key, image, detections.labels if kind == "right" else None)
    shown = torch.cat([(truth.image if kind == "missed" else image)[rows] for kind, rows in chosen.items()]).unique()

    images = []
    entry: dict[tuple[str, int], list[int]] = {}  # of a detection or an object: its image and its index there
    focus = torch.cat([rows for kind, rows in chosen.items() if kind != "missed"])
    # a loop over the few images that are shown
    for number, index in enumerate(shown.tolist()):
        plain, found, objects = _image(dataset, index, image, detections, truth, errors, focus, chosen["missed"])
        images.append(plain)
        entry.update({("detection", row): [number, order] for order, row in enumerate(found)})
        entry.update({("object", row): [number, order] for order, row in enumerate(objects)})
    return {
        "kinds": {
            kind: [entry["object" if kind == "missed" else "detection", row] for row in rows.tolist()]
            for kind, rows in chosen.items()
        },
        "images": images,
    }


def image_of(detections: DetectionSet, truth: TruthSet) -> Tensor:
    """(D,) the detections' images as the truth numbers them."""
    number = {name: index for index, name in enumerate(truth.ids)}
    return torch.tensor([number[name] for name in detections.ids], dtype=torch.int64)[detections.image]


def _one_an_image(rows: Tensor, key: Tensor, image: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the first IMAGES of `rows` by `key`, one an image; with labels, class after class."""
    rows = rows[key[rows].sort(stable=True).indices]
    rows = rows[_repeats(image[rows]) == 0]
    if labels is not None:
        rows = rows[_repeats(labels[rows]).sort(stable=True).indices]
    return rows[:IMAGES]


def _repeats(values: Tensor) -> Tensor:
    """(N,) how often each value stands before it."""
    order = values.sort(stable=True).indices
    ordered = values[order]
    count = torch.empty_like(order)
    count[order] = torch.arange(len(values)) - torch.searchsorted(ordered, ordered)
    return count


def _image(
    dataset: DetectionDataset,
    index: int,
    image: Tensor,
    detections: DetectionSet,
    truth: TruthSet,
    errors: ErrorAnalysis,
    focus: Tensor,
    missed: Tensor,
) -> tuple[dict[str, Any], list[int], list[int]]:
    """Return one image as plain data, and the rows of its detections and objects."""
    found = (image == index).nonzero().squeeze(1)
    # those that a gallery shows are kept, whatever their score
    rank = detections.scores[found] + 1e9 * torch.isin(found, focus)
    found = found[rank.sort(descending=True, stable=True).indices[:BOXES]]
    found = found[detections.scores[found].sort(descending=True, stable=True).indices]
    objects = (truth.image == index).nonzero().squeeze(1)
    objects = objects[(~torch.isin(objects, missed)).long().sort(stable=True).indices[:BOXES]]
    boxes = torch.cat((truth.boxes[objects], detections.boxes[found]))
    # 0 = to find and lost by an error, 1 = found, 2 = missed, 3 = ignored
    status = torch.where(truth.ignore, 3, torch.where(errors.missed, 2, errors.found.long()))
    plain = {
        **backdrop(dataset, index, boxes),
        "detections": [
            [label, round(score, 4), state, *short_box(box), round(near, 3)]
            for label, score, state, box, near in zip(
                labels_of(detections, truth)[found].tolist(),
                detections.scores[found].tolist(),
                errors.state[found].tolist(),
                detections.boxes[found].tolist(),
                errors.near[found].tolist(),
            )
        ],
        "objects": [
            [label, state, *short_box(box)]
            for label, state, box in zip(
                truth.labels[objects].tolist(), status[objects].tolist(), truth.boxes[objects].tolist()
            )
        ],
    }
    return plain, found.tolist(), objects.tolist()


def backdrop(dataset: DetectionDataset, index: int, boxes: Tensor) -> dict[str, Any]:
    """Return what boxes are drawn on: {"id", "width", "height", "jpeg"}, the last None where it cannot be read.

    boxes: (N, 4), all that are drawn; they tell the size where neither the image nor its annotation does.
    """
    record = dataset.record(index)
    width, height, jpeg = record.width, record.height, None
    try:
        image = dataset.image(index)
    except UserError:
        image = None  # annotations alone are enough for scoring, and for boxes on a blank
    if image is not None:
        height, width = image.shape[:2]
        jpeg = thumbnail(image)
    if not (width and height):
        width, height = (int(edge) + 1 for edge in boxes[:, 2:].amax(0).tolist())
    return {"id": record.id, "width": width, "height": height, "jpeg": jpeg}


def labels_of(detections: DetectionSet, truth: TruthSet) -> Tensor:
    """(D,) the detections' labels as the truth numbers them."""
    number = {name: index for index, name in enumerate(truth.classes)}
    return torch.tensor([number[name] for name in detections.classes], dtype=torch.int64)[detections.labels]


def short_box(box: list[float]) -> list[float]:
    """A box in tenths of pixels."""
    return [round(edge, 1) for edge in box]


def thumbnail(image: Any) -> str:
    """Return an image as the URL of a small JPEG of at most BYTES."""
    small = Image.fromarray(image)
    small.thumbnail((SIDE, SIDE))
    while True:
        for quality in QUALITIES:
            data = _jpeg(small, quality)
            if len(data) <= BYTES:
                return "data:image/jpeg;base64," + base64.b64encode(data).decode()
        small = small.reduce(2)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()
