"""The images of a report: which ones, their thumbnails, and what is drawn on them."""

import base64
import io
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detkit.errors import UserError
from detkit.evaluation.errors import KINDS, STATES, ErrorAnalysis
from detkit.structures import DetectionSet, TruthSet

if TYPE_CHECKING:
    from PIL.Image import Image

    from detkit.data.dataset import DetectionDataset

IMAGES = 12  # of each kind
SIDE = 480  # longest side of a thumbnail in pixels
BYTES = 40_000  # of a thumbnail at most, so that all of a report's are less than 5 MB
BOXES = 60  # detections and objects kept of an image, each
QUALITIES = (80, 65, 50, 35, 20)


def gallery(
    dataset: "DetectionDataset", detections: DetectionSet, truth: TruthSet, errors: ErrorAnalysis
) -> dict[str, Any]:
    """Return the images of each kind, as plain data: {"kinds": {kind: [[image, box], ...]}, "images": [...]}.

    Of each kind the PICTURES worst, of as many images: the errors of best score, and the largest of missed objects;
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
    wanted = torch.cat([(truth.image if kind == "missed" else image)[rows] for kind, rows in chosen.items()]).unique()

    drawings = []
    place: dict[tuple[str, int], list[int]] = {}
    focus = torch.cat([rows for kind, rows in chosen.items() if kind != "missed"])
    # a loop over the few images that are shown
    for number, index in enumerate(wanted.tolist()):
        drawing, found, objects = _drawing(dataset, index, image, detections, truth, errors, focus, chosen["missed"])
        drawings.append(drawing)
        place.update({("detection", row): [number, spot] for spot, row in enumerate(found)})
        place.update({("object", row): [number, spot] for spot, row in enumerate(objects)})
    return {
        "kinds": {
            kind: [place["object" if kind == "missed" else "detection", row] for row in rows.tolist()]
            for kind, rows in chosen.items()
        },
        "images": drawings,
    }


def image_of(detections: DetectionSet, truth: TruthSet) -> Tensor:
    """(D,) the detections' images as the truth numbers them."""
    number = {name: index for index, name in enumerate(truth.ids)}
    return torch.tensor([number[name] for name in detections.ids], dtype=torch.int64)[detections.image]


def _one_an_image(rows: Tensor, key: Tensor, image: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the first PICTURES of `rows` by `key`, each of an image of its own; with labels, class after class."""
    rows = rows[key[rows].sort(stable=True).indices]
    rows = rows[_repeats(image[rows]) == 0]
    if labels is not None:
        rows = rows[_repeats(labels[rows]).sort(stable=True).indices]
    return rows[:IMAGES]


def _repeats(values: Tensor) -> Tensor:
    """(N,) how often each value stands before it."""
    order = values.sort(stable=True).indices
    ordered = values[order]
    place = torch.arange(len(values))
    count = torch.empty_like(place)
    count[order] = place - torch.searchsorted(ordered, ordered)
    return count


def _drawing(
    dataset: "DetectionDataset",
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
    paper = paper_of(dataset, index, torch.cat((truth.boxes[objects], detections.boxes[found])))
    # 0 = to find and lost by an error, 1 = found, 2 = missed, 3 = ignored
    status = torch.where(truth.ignore, 3, torch.where(errors.missed, 2, errors.found.long()))
    drawing = {
        **paper,
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
    return drawing, found.tolist(), objects.tolist()


def paper_of(dataset: "DetectionDataset", index: int, boxes: Tensor) -> dict[str, Any]:
    """Return what boxes are drawn on: {"id", "width", "height", "image"}, the last None where it cannot be read.

    boxes: (N, 4), all that are drawn; they tell the size where neither the image nor its annotation does.
    """
    record = dataset.record(index)
    width, height, source = record.width, record.height, None
    try:
        image = dataset.image(index)
    except UserError:
        image = None  # annotations alone are enough for scoring, and for boxes on blank paper
    if image is not None:
        height, width = image.shape[:2]
        source = thumbnail(image)
    if not (width and height):
        width, height = (int(edge) + 1 for edge in boxes[:, 2:].amax(0).tolist())
    return {"id": record.id, "width": width, "height": height, "image": source}


def labels_of(detections: DetectionSet, truth: TruthSet) -> Tensor:
    """(D,) the detections' labels as the truth numbers them."""
    number = {name: index for index, name in enumerate(truth.classes)}
    return torch.tensor([number[name] for name in detections.classes], dtype=torch.int64)[detections.labels]


def short_box(box: list[float]) -> list[float]:
    """A box in tenths of pixels."""
    return [round(edge, 1) for edge in box]


def thumbnail(image: Any) -> str:
    """Return an image as the URL of a small JPEG of at most BYTES."""
    from PIL import Image

    drawing = Image.fromarray(image)
    drawing.thumbnail((SIDE, SIDE))
    while True:
        for quality in QUALITIES:
            data = _jpeg(drawing, quality)
            if len(data) <= BYTES:
                return "data:image/jpeg;base64," + base64.b64encode(data).decode()
        drawing = drawing.reduce(2)


def _jpeg(drawing: "Image", quality: int) -> bytes:
    file = io.BytesIO()
    drawing.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()
