"""YOLOv2's loss (Redmon and Farhadi, YOLO9000, CVPR 2017), and its passthrough layer. Places: see ops/places.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.ops.boxes import gather_boxes, paired_iou, xyxy_to_cxcywh
from detkit.ops.coders import MIN_SIDE
from detkit.ops.matching import IGNORED, Match
from detkit.ops.places import Places


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


def yolov2_loss(
    raw: Tensor,
    predicted: Tensor,
    match: Match,
    boxes: Tensor,
    labels: Tensor,
    places: Places,
    *,
    coord: float = 1.0,
    positive: float = 5.0,
    negative: float = 1.0,
    classes: float = 1.0,
    ignore_iou: float = 0.6,
    prior: float | Tensor = 0.0,
) -> dict[str, Tensor]:
    """Return the terms of the authors' region layer as scalars to be added; the paper has no equation.

    raw: (B, P, 5 + C); predicted: (B, P, 4) of `decode_places`; match: of `assign_places`; boxes: (B, N, 4); labels:
    (B, N). Squared errors of places with an object: of "centre", after the sigmoid, in cells; of "side", in logarithms;
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
    target_centre = parts[..., :2] / places.cell - places.corner
    target_side = (parts[..., 2:].clamp(min=MIN_SIDE) / places.anchor).log()
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
