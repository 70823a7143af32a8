"""YOLOv2's boxes, assignment and loss (Redmon and Farhadi, YOLO9000, CVPR 2017), and its passthrough layer.

A map has rows x columns cells with A anchors each: places, cell by cell, row after row, then the anchors of a cell. A
raw output of a place is x, y, w, h, objectness, and one logit a class. Boxes and anchors are in cells of the map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.ops.boxes import box_iou, cxcywh_to_xyxy, gather_boxes, paired_iou, xyxy_to_cxcywh
from detkit.ops.coders import MAX_LOG_SCALE, MIN_SIDE
from detkit.ops.matching import IGNORED, Match
from detkit.ops.yolo import place_objects


def reorg(x: Tensor, adjacent: bool) -> Tensor:
    """(B, C, H, W) -> (B, 4 C, H / 2, W / 2), for H and W that are even; C a multiple of 4 unless `adjacent`.

    adjacent: each 2x2 cells become the channels of one (section 2, fine-grained features). Otherwise as darknet's
    reorg layer has it, which reads memory as if it were a map of C / 4 channels and twice the sides: weights that were
    trained with it need it.
    """
    if adjacent:
        return F.pixel_unshuffle(x, 2)
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels // 4, height, 2, width, 2).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(batch, channels * 4, height // 2, width // 2)


def corners(rows: int, columns: int, anchors: int, device: torch.device) -> Tensor:
    """Return the upper left corner (P, 2) of each place's cell, x and y in cells."""
    y, x = (torch.arange(side, device=device, dtype=torch.float32) for side in (rows, columns))
    grid = torch.stack((x.expand(rows, columns), y.unsqueeze(1).expand(rows, columns)), -1)
    return grid.view(-1, 1, 2).expand(-1, anchors, -1).reshape(-1, 2)


def decode_places(raw: Tensor, anchors: Tensor, rows: int, columns: int) -> Tensor:
    """Return boxes (B, P, 4) xyxy in cells, from raw outputs (B, P, 4 or more) (figure 3, direct location prediction).

    anchors: (A, 2) width and height. Sides are cut to at most exp(MAX_LOG_SCALE) times the anchor's.
    """
    raw, cells = raw.float(), rows * columns
    centre = corners(rows, columns, len(anchors), raw.device) + raw[..., :2].sigmoid()
    sides = anchors.repeat(cells, 1) * raw[..., 2:4].clamp(max=MAX_LOG_SCALE).exp()
    return cxcywh_to_xyxy(torch.cat((centre, sides), -1))


@torch.no_grad()
def assign_places(
    predicted: Tensor,
    boxes: Tensor,
    valid: Tensor,
    ignore: Tensor | None,
    anchors: Tensor,
    rows: int,
    columns: int,
    priority: Tensor | None = None,
) -> Match:
    """Return which object each place learns, and the best IoU of each predicted box with any object.

    predicted: (B, P, 4) of `decode_places`; boxes: (B, N, 4) xyxy in cells; valid: (B, N) bool, False for padding;
    ignore: (B, N) bool, objects not trained on, or None; anchors: (A, 2). An object belongs to the cell of its centre
    and there to the anchor of the most similar shape, ties to the first (the authors' code, `bias_match`); of several
    at a place to the one of highest `priority` (B, N). A place of ignored objects only is IGNORED. IoUs count ignored
    objects, too.
    """
    parts = xyxy_to_cxcywh(boxes)
    column = parts[..., 0].long().clamp(0, columns - 1)
    row = parts[..., 1].long().clamp(0, rows - 1)
    shape = torch.cat((torch.zeros_like(parts[..., 2:]), parts[..., 2:]), -1)
    anchor = box_iou(shape, torch.cat((torch.zeros_like(anchors), anchors), -1)).argmax(-1)
    place = (row * columns + column) * len(anchors) + anchor
    index = place_objects(place, valid, ignore, predicted.shape[1], priority)
    if valid.shape[1] == 0:
        return Match(index, predicted.new_zeros(index.shape))
    iou = box_iou(boxes, predicted).masked_fill_(~valid.unsqueeze(-1), 0).amax(1)
    return Match(index, iou)


def yolov2_loss(
    raw: Tensor,
    predicted: Tensor,
    match: Match,
    boxes: Tensor,
    labels: Tensor,
    anchors: Tensor,
    rows: int,
    columns: int,
    *,
    coord: float = 1.0,
    positive: float = 5.0,
    negative: float = 1.0,
    classes: float = 1.0,
    ignore_iou: float = 0.6,
    prior: float | Tensor = 0.0,
) -> dict[str, Tensor]:
    """Return the terms of the authors' region layer as scalars to be added; the paper has no equation.

    raw: (B, P, 5 + C); predicted: (B, P, 4) of `decode_places`; match: of `assign_places`; boxes: (B, N, 4) in cells;
    labels: (B, N). Squared errors of places with an object: of "centre", after the sigmoid; of "side", in logarithms;
    of "object", the objectness against the IoU of the predicted box, which carries no gradient. Of "no_object", the
    objectness of places without one against 0, but for those whose box overlaps an object more than `ignore_iou`, and
    IGNORED ones. Of "prior", the boxes of places without an object against their anchors, weighted by `prior`. All
    these are half the sum, "class" is the cross-entropy of places with an object; each a mean over images.
    """
    raw = raw.float()
    matched = match.index.clamp(min=0)
    truth, found = gather_boxes(boxes, matched), match.index >= 0
    iou = paired_iou(predicted.detach().flatten(0, 1), truth.flatten(0, 1)).view_as(found)
    parts = xyxy_to_cxcywh(truth)
    target_centre = parts[..., :2] - corners(rows, columns, len(anchors), raw.device)
    target_side = (parts[..., 2:].clamp(min=MIN_SIDE) / anchors.repeat(rows * columns, 1)).log()
    centre, side, objectness = raw[..., :2].sigmoid(), raw[..., 2:4], raw[..., 4].sigmoid()
    label = F.pad(labels, (0, 1)).gather(1, matched).clamp(min=0)  # gather needs something to point at
    entropy = F.cross_entropy(raw[..., 5:].flatten(0, 1), label.flatten(), reduction="none").view_as(iou)
    empty = ~found & (match.index != IGNORED) & (match.iou <= ignore_iou)
    to_anchor = (centre - 0.5).square().sum(-1) + side.square().sum(-1)
    terms = {
        "centre": torch.where(found, coord / 2 * (centre - target_centre).square().sum(-1), 0),
        "side": torch.where(found, coord / 2 * (side - target_side).square().sum(-1), 0),
        "object": torch.where(found, positive / 2 * (objectness - iou).square(), 0),
        "no_object": torch.where(empty, negative / 2 * objectness.square(), 0),
        "class": torch.where(found, classes * entropy, 0),
        "prior": torch.where(found, 0, prior / 2 * to_anchor),
    }
    return {name: term.sum() / len(raw) for name, term in terms.items()}
