"""The images of a report: which ones, their thumbnails, and what is drawn on them."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detkit.data.dataset import DetectionDataset
from detkit.errors import UserError
from detkit.evaluation.errors import KINDS, STATES, ErrorAnalysis
from detkit.evaluation.flat import join
from detkit.report.markup import data_url, jpeg
from detkit.structures import DetectionSet, TruthSet

IMAGES = 12  # of each kind
SIDE = 480  # longest side of a thumbnail in pixels
BYTES = 40_000  # of a thumbnail at most, so that all of a report's are less than 5 MB
BOXES = 60  # detections of an image, and objects, that are shown at most
QUALITIES = (80, 65, 50, 35, 20)


def gallery(
    dataset: DetectionDataset, detections: DetectionSet, truth: TruthSet, errors: ErrorAnalysis, working: ErrorAnalysis
) -> dict[str, Any]:
    """Return the images of each kind, as plain data: {"kinds": {kind: [[image, box], ...]}, "images": [...]}.

    Of each kind the IMAGES worst, of as many images: the errors of best score, and the largest of missed objects;
    what is right is shown by the best of each class. `box` is a detection of the image, or an object where the kind
    is missed; an image's `index` is its number in the data set. errors: of all detections; working: of those of a
    working score, by which objects are found or missed.
    """
    labels, image = join(detections, truth)
    chosen = {}
    for kind in ("right", *KINDS[:-1]):
        rows = _one_an_image(errors.state == STATES.index(kind), detections.scores, image)
        if kind == "right":  # class after class
            rows = rows[_repeats(labels[rows]).sort(stable=True).indices]
        chosen[kind] = rows[:IMAGES]
    area = (truth.boxes[:, 2:] - truth.boxes[:, :2]).prod(1)
    missed = _one_an_image(working.missed, area, truth.image)[:IMAGES]

    # those that a gallery shows are kept, whatever their score
    focus = torch.cat([*chosen.values()])
    rank = detections.scores.clone()
    rank[focus] += 1e9
    object_rank = torch.isin(torch.arange(len(truth.labels)), missed).long()
    # 0 = to find and lost by an error, 1 = found, 2 = missed, 3 = ignored
    status = torch.where(truth.ignore, 3, torch.where(working.missed, 2, working.found.long()))
    images = []
    # of each detection and object: the number of its image, and its own there
    place, object_place = torch.zeros(len(rank), 2).long(), torch.zeros(len(status), 2).long()
    # a loop over the few images that are shown
    for number, index in enumerate(torch.cat((image[focus], truth.image[missed])).unique().tolist()):
        found = best_first(best_first(image == index, rank)[:BOXES], detections.scores)
        objects = best_first(truth.image == index, object_rank)[:BOXES]
        for places, rows in ((place, found), (object_place, objects)):
            places[rows] = torch.stack((torch.full_like(rows, number), torch.arange(len(rows))), 1)
        boxes = plain_boxes(found, detections.boxes, labels, detections.scores, errors.state)
        near = errors.near[found].tolist()
        images.append(
            {
                "index": index,
                **backdrop(dataset, index, torch.cat((truth.boxes[objects], detections.boxes[found]))),
                "detections": [[*box, round(iou, 3)] for box, iou in zip(boxes, near)],
                "objects": plain_boxes(objects, truth.boxes, truth.labels, status),
            }
        )
    kinds = {kind: place[rows].tolist() for kind, rows in chosen.items()}
    return {"kinds": {**kinds, "missed": object_place[missed].tolist()}, "images": images}


def best_first(rows: Tensor, values: Tensor) -> Tensor:
    """Return indices into `values`, (N,) or as a mask, by the values there, the highest first."""
    rows = rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows
    return rows[values[rows].sort(descending=True, stable=True).indices]


def _one_an_image(mask: Tensor, values: Tensor, image: Tensor) -> Tensor:
    """Return the best by its value of each image's masked rows, the best first."""
    rows = best_first(mask, values)
    return rows[_repeats(image[rows]) == 0]


def _repeats(values: Tensor) -> Tensor:
    """(N,) how often each value stands before it."""
    order = values.sort(stable=True).indices
    ordered = values[order]
    count = torch.empty_like(order)
    count[order] = torch.arange(len(values)) - torch.searchsorted(ordered, ordered)
    return count


def plain_boxes(rows: Tensor, boxes: Tensor, *columns: Tensor) -> list[list[float]]:
    """Return the values of some rows in each column, to four digits, then the box in tenths of pixels."""
    values = zip(boxes[rows].tolist(), *(column[rows].tolist() for column in columns))
    return [[*(round(one, 4) for one in row), *(round(edge, 1) for edge in box)] for box, *row in values]


def backdrop(dataset: DetectionDataset, index: int, boxes: Tensor) -> dict[str, Any]:
    """Return what boxes are drawn on: {"id", "width", "height", "jpeg"}, the last None where it cannot be read.

    boxes: (N, 4), all that are drawn; they tell the size where neither the image nor its annotation does.
    """
    record = dataset.record(index)
    width, height, url = record.width, record.height, None
    try:
        image = dataset.image(index)
    except UserError:
        pass  # annotations alone are enough for scoring, and for boxes on a blank
    else:
        height, width = image.shape[:2]
        url = thumbnail(image)
    if not (width and height):
        width, height = (int(edge) + 1 for edge in boxes[:, 2:].amax(0).tolist())
    return {"id": record.id, "width": width, "height": height, "jpeg": url}


def thumbnail(image: np.ndarray) -> str:
    """Return an image as the URL of a small JPEG of at most BYTES."""
    small = Image.fromarray(image)
    small.thumbnail((SIDE, SIDE))
    while True:
        for quality in QUALITIES:
            data = jpeg(small, quality)
            if len(data) <= BYTES:
                return data_url(data)
        small = small.reduce(2)
