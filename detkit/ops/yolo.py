"""YOLOv1's grid of cells: which object a cell is responsible for, its boxes, and the loss (Redmon et al., CVPR 2016).

A grid has S x S cells, row by row, each with K boxes and one set of C class scores. A box is (x, y, w, h): x and y the
centre within the cell, in units of the cell; w and h the square roots of the sides as fractions of the image.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.ops.boxes import box_iou, cxcywh_to_xyxy, gather_boxes, xyxy_to_cxcywh
from detkit.ops.matching import BACKGROUND, IGNORED


class Cells(NamedTuple):
    """Raw outputs for a grid. boxes: (B, S * S, K, 4); confidence: (B, S * S, K); classes: (B, S * S, C)."""

    boxes: Tensor
    confidence: Tensor
    classes: Tensor


@torch.no_grad()
def assign_cells(
    boxes: Tensor,
    valid: Tensor,
    ignore: Tensor | None,
    grid: int,
    size: tuple[int, int],
    priority: Tensor | None = None,
) -> Tensor:
    """Return the object of each cell (B, S * S) int64: an index, or BACKGROUND (-1), or IGNORED (-2).

    boxes: (B, N, 4) xyxy in pixels of an image of `size`, height and width; valid: (B, N) bool, False for padding;
    ignore: (B, N) bool, objects not trained on, or None; grid: S. A cell is responsible for the object whose centre
    falls into it (section 2); of several, for the one of highest `priority` (B, N), by default the first. A cell with
    ignored objects only is IGNORED.
    """
    centre = xyxy_to_cxcywh(boxes)[..., :2] / _extent(boxes, size)[:2]
    column, row = (centre * grid).long().clamp(0, grid - 1).unbind(-1)
    return place_objects(row * grid + column, valid, ignore, grid * grid, priority)


def place_objects(
    place: Tensor, valid: Tensor, ignore: Tensor | None, places: int, priority: Tensor | None = None
) -> Tensor:
    """Return the object of each place (B, places) int64: an index, or BACKGROUND (-1), or IGNORED (-2).

    place: (B, N) int64, the one that each object belongs to; the others as in `assign_cells`.
    """
    batch, count = valid.shape
    if count == 0:
        return torch.full((batch, places), BACKGROUND, device=valid.device)
    used = valid if ignore is None else valid & ~ignore
    rank = torch.arange(count, device=place.device).expand(batch, count)
    order = rank if priority is None else priority.argsort(dim=1, descending=True, stable=True)
    # the rank of each place's best object; what is not trained on writes to one more column, which is dropped
    target = torch.where(used, place, places).gather(1, order)
    best = rank.new_full((batch, places + 1), count).scatter_reduce_(1, target, rank, "amin")[:, :-1]
    index = order.gather(1, best.clamp(max=count - 1))
    no_object = torch.full_like(best, BACKGROUND)
    if ignore is not None:
        ignored_place = torch.where(valid & ignore, place, places)
        no_object = torch.cat((no_object, no_object[:, :1]), 1).scatter_(1, ignored_place, IGNORED)[:, :-1]
    return torch.where(best < count, index, no_object)


def decode_cells(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes xyxy (..., S * S, K, 4) in pixels of an image of `size`, height and width, from raw ones."""
    boxes = boxes.float()
    centre = (boxes[..., :2] + _corners(boxes)) / _side(boxes)
    return cxcywh_to_xyxy(torch.cat((centre, boxes[..., 2:].square()), -1) * _extent(boxes, size))


def encode_cells(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return raw boxes (..., S * S, K, 4) from boxes xyxy in pixels, each seen from its cell; undoes `decode_cells`."""
    boxes = xyxy_to_cxcywh(boxes) / _extent(boxes, size)
    return torch.cat((boxes[..., :2] * _side(boxes) - _corners(boxes), boxes[..., 2:].clamp(min=0).sqrt()), -1)


@torch.no_grad()
def responsible(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of K boxes (..., K, 4) is responsible for the object (..., 4): (...) int64; and each IoU (..., K).

    It is the box of highest IoU (section 2), and where all are 0 the one of smallest root-mean-square error of centre
    and sides, as in the authors' code. Ties go to the first. All are xyxy as fractions of the image.
    """
    truth = truth.unsqueeze(-2)
    iou = box_iou(predicted, truth).squeeze(-1)
    error = (xyxy_to_cxcywh(predicted) - xyxy_to_cxcywh(truth)).square().sum(-1)
    return torch.where((iou > 0).any(-1), iou.argmax(-1), error.argmin(-1)), iou


@torch.no_grad()
def responsible_boxes(cells: Cells, index: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return which boxes are responsible for their cell's object (B, S * S, K) bool, and each box's IoU with it.

    cells: raw outputs; index: (B, S * S) of `assign_cells`; boxes: (B, N, 4) xyxy in pixels of images of `size`. The
    IoU means nothing in a cell without an object.
    """
    truth = gather_boxes(boxes, index.clamp(min=0))
    best, iou = responsible(decode_cells(cells.boxes, (1, 1)), truth / _extent(truth, size))
    ordinal = torch.arange(iou.shape[-1], device=best.device)
    return (index >= 0).unsqueeze(-1) & (best.unsqueeze(-1) == ordinal), iou


def yolo_loss(
    cells: Cells,
    index: Tensor,
    boxes: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    coord: float = 5.0,
    noobj: float = 0.5,
) -> dict[str, Tensor]:
    """Return the five terms of YOLO's loss (section 2.2, equation 3) as scalars to be added.

    cells: raw outputs; index: (B, S * S) of `assign_cells`; boxes: (B, N, 4) xyxy in pixels of images of `size`, height
    and width; labels: (B, N). Squared errors of "centre" and "side" of responsible boxes, weighted by `coord`; of
    "object", their confidence against their IoU, which carries no gradient; of "no_object", every other box's
    confidence against 0, weighted by `noobj`; and of "class", the C scores of cells with an object. IGNORED cells have
    no loss.

    Each is half the sum, a mean over the batch's images: the authors' code descends by target - output, so that half
    of equation 3 is what their learning rates belong to.
    """
    cells = Cells(*(part.float() for part in cells))
    is_responsible, iou = responsible_boxes(cells, index, boxes, size)
    has_object = (index >= 0).unsqueeze(-1)
    matched = index.clamp(min=0)
    truth = gather_boxes(boxes, matched).unsqueeze(2)

    error = (cells.boxes - encode_cells(truth, size)).square()
    target_label = F.pad(labels, (0, 1)).gather(1, matched).unsqueeze(-1)  # gather needs something to point at
    one_hot = target_label == torch.arange(cells.classes.shape[-1], device=labels.device)
    counts_as_empty = ~(is_responsible | (index == IGNORED).unsqueeze(-1))
    terms = {
        "centre": coord * torch.where(is_responsible, error[..., :2].sum(-1), 0),
        "side": coord * torch.where(is_responsible, error[..., 2:].sum(-1), 0),
        "object": torch.where(is_responsible, (cells.confidence - iou).square(), 0),
        "no_object": noobj * torch.where(counts_as_empty, cells.confidence.square(), 0),
        "class": torch.where(has_object, (cells.classes - one_hot.float()).square(), 0),
    }
    return {name: term.sum() / (2 * len(index)) for name, term in terms.items()}


def _side(boxes: Tensor) -> int:
    """S of boxes (..., S * S, K, 4)."""
    return round(boxes.shape[-3] ** 0.5)


def _corners(boxes: Tensor) -> Tensor:
    """The upper left corners (S * S, 1, 2) of the cells of boxes (..., S * S, K, 4), in cells."""
    line = torch.arange(_side(boxes), device=boxes.device, dtype=torch.float32)
    return torch.cartesian_prod(line, line).view(-1, 1, 2).flip(-1)


def _extent(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Width, height, width, height, (4,)."""
    extent = boxes.new_full((4,), size[1], dtype=torch.float32)
    extent[1::2] = size[0]
    return extent
