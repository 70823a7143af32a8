"""Losses of region and dense detectors, over padded batches and without host syncs."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from detkit.ops.boxes import gather_boxes
from detkit.ops.coders import BoxCoder
from detkit.ops.matching import BACKGROUND, IGNORED, Match


def world_mean(value: Tensor, min_total: float = 0.0) -> Tensor:
    """Return a scalar's mean over all processes; the sum over the processes counts as at least `min_total`.

    As a loss's divisor it makes gradients averaged over processes equal those of one process with all images.
    """
    total = value.detach().float()
    if (processes := world_size()) > 1:
        total = total.clone()
        dist.all_reduce(total)
    return total.clamp(min=min_total) / processes


def world_size() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def smooth_l1(prediction: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Return the elementwise loss in float32: d^2 / (2 beta) where |d| < beta, else |d| - beta / 2 (Fast R-CNN, eq. 3).

    beta = 1 / sigma^2 of py-faster-rcnn.
    """
    return F.smooth_l1_loss(prediction.float(), target.float(), beta=beta, reduction="none")


@torch.no_grad()
def hard_negative_mask(loss: Tensor, positive: Tensor, candidates: Tensor, ratio: float = 3.0) -> Tensor:
    """Return (B, A) bool: in each image the candidates of highest loss, `ratio` times as many as positives.

    loss, positive, candidates: (B, A). Among equal losses the lower index is taken (SSD, section 2.2).
    """
    quota = (positive.sum(1, keepdim=True) * ratio).floor()
    order = loss.masked_fill(~candidates, -torch.inf).argsort(dim=1, descending=True, stable=True)
    first = torch.arange(loss.shape[1], device=loss.device) < quota
    return torch.zeros_like(candidates).scatter_(1, order, first) & candidates


def hard_negatives(logits: Tensor, match: Match, labels: Tensor, ratio: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy (B, A) of each default box, and which negatives are counted, (B, A) bool.

    logits: (B, A, C + 1), background last; match: of `match_ssd`; labels: (B, N) of the objects (SSD, section 2.2).
    """
    positive = match.index >= 0
    labels = F.pad(labels, (0, 1))  # gather needs something to point at
    target = torch.where(positive, labels.gather(1, match.index.clamp(min=0)), logits.shape[-1] - 1)
    entropy = _cross_entropy(logits, target)
    return entropy, hard_negative_mask(entropy.detach(), positive, match.index == BACKGROUND, ratio)


def multibox_loss(
    logits: Tensor,
    deltas: Tensor,
    match: Match,
    boxes: Tensor,
    labels: Tensor,
    anchors: Tensor,
    coder: BoxCoder,
    ratio: float = 3.0,
) -> dict[str, Tensor]:
    """Return SSD's loss {"classification", "box"} (SSD, equation 1), two scalars to be added.

    logits: (B, A, C + 1), background last; deltas: (B, A, 4); match: of `match_ssd`; boxes: (B, N, 4) and labels:
    (B, N), the objects; anchors: (A, 4).

    Cross-entropy over positives and hard negatives, smooth L1 over positives, both summed and divided by the number
    of positives in the batch, at least 1, averaged over processes. As in the paper an image without positives has no
    negatives either: its loss is 0, still connected to the graph.
    """
    positive = match.index >= 0
    entropy, negative = hard_negatives(logits, match, labels, ratio)
    target_deltas = coder.encode(gather_boxes(boxes, match.index.clamp(min=0)), anchors)
    box = smooth_l1(deltas, target_deltas).sum(-1)

    count = world_mean(positive.sum(), min_total=1.0)
    return {"classification": _mean(entropy, positive | negative, count), "box": _mean(box, positive, count)}


def rpn_loss(
    logits: Tensor,
    deltas: Tensor,
    match: Match,
    index: Tensor,
    valid: Tensor,
    boxes: Tensor,
    anchors: Tensor,
    coder: BoxCoder,
) -> dict[str, Tensor]:
    """Return the RPN's loss {"objectness", "rpn_box"}, two scalars to be added (Faster R-CNN, equation 1).

    logits: (B, A), of an object against background (section 3.1, the note that allows logistic regression); deltas:
    (B, A, 4); match: of `match_rpn`; index, valid: (B, K), the anchors that `sample` chose; boxes: (B, N, 4), the
    objects; anchors: (A, 4). Cross-entropy over the sampled, smooth L1 with sigma 3 over the sampled positives, both
    summed and divided by the number sampled in the batch, at least 1, averaged over processes (as the authors' Python
    code, where the paper balances with lambda = 10 and the number of anchor locations).
    """
    matched = match.index.gather(1, index)
    positive = valid & (matched >= 0)
    entropy = F.binary_cross_entropy_with_logits(logits.float().gather(1, index), positive.float(), reduction="none")
    target_deltas = coder.encode(gather_boxes(boxes, matched.clamp(min=0)), anchors[index])
    box = smooth_l1(gather_boxes(deltas, index), target_deltas, beta=1 / 9).sum(-1)
    count = world_mean(valid.sum(), min_total=1.0)
    return {"objectness": _mean(entropy, valid, count), "rpn_box": _mean(box, positive, count)}


def focal_loss(logits: Tensor, positive: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return the elementwise focal loss in float32: -alpha_t (1 - p_t)^gamma log(p_t) (Focal loss, equation 5).

    logits: of whether there is something; positive: bool, of the same shape, whether there is. gamma 0 leaves the
    weighted cross-entropy. Finite, and with finite gradients, for all finite logits.
    """
    logits = logits.float()
    right = torch.where(positive, logits, -logits)
    log_right = F.logsigmoid(right)
    log_wrong = log_right - right
    return -torch.where(positive, alpha, 1 - alpha) * (gamma * log_wrong).exp() * log_right


def retinanet_loss(
    logits: Tensor,
    deltas: Tensor,
    match: Match,
    boxes: Tensor,
    labels: Tensor,
    anchors: Tensor,
    coder: BoxCoder,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    beta: float = 0.11,
) -> dict[str, Tensor]:
    """Return RetinaNet's loss {"classification", "box"}, two scalars to be added (Focal loss, section 4.1).

    logits: (B, A, C); deltas: (B, A, 4); match: of `match_rpn`; boxes: (B, N, 4) and labels: (B, N), the objects;
    anchors: (A, 4). The focal loss over all anchors and classes but for IGNORED anchors, smooth L1 over positive ones
    (absolute differences where `beta` is 0). Of each image both are summed and divided by its positive anchors, at
    least 1; then the mean of the images.
    """
    positive = match.index >= 0
    focal = focal_loss(logits, anchor_classes(match, labels, logits.shape[-1]), alpha, gamma).sum(-1)
    target_deltas = coder.encode(gather_boxes(boxes, match.index.clamp(min=0)), anchors)
    box = smooth_l1(deltas, target_deltas, beta).sum(-1)
    count = positive.sum(1, keepdim=True).clamp(min=1) * len(positive)
    return {
        "classification": torch.where(match.index == IGNORED, 0, focal / count).sum(),
        "box": torch.where(positive, box / count, 0).sum(),
    }


def anchor_classes(match: Match, labels: Tensor, classes: int) -> Tensor:
    """Return (B, A, classes) bool: the class of each anchor's object; none where it has none. labels: (B, N)."""
    label = F.pad(labels, (0, 1)).gather(1, match.index.clamp(min=0))  # gather needs something to point at
    label = torch.where(match.index >= 0, label, -1)
    return label.unsqueeze(-1) == torch.arange(classes, device=label.device)


def softmax_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cross-entropy of regions, a scalar (R-CNN, section 2.3; the first term of Fast R-CNN's loss).

    logits: (B, R, C + 1), background last; target: (B, R) int64, 0..C, C for background; valid: (B, R) bool, the
    regions counted. Their sum is divided by their number, at least 1, averaged over processes.
    """
    return _mean(_cross_entropy(logits, target), valid, world_mean(valid.sum(), min_total=1.0))


def region_loss(
    logits: Tensor, deltas: Tensor, target: Tensor, target_deltas: Tensor, valid: Tensor, beta: float = 1.0
) -> dict[str, Tensor]:
    """Return the multi-task loss {"classification", "box"} of regions (Fast R-CNN, equation 1, with lambda = 1).

    logits: (B, R, C + 1), background last; deltas: (B, R, C, 4), one set a class; target: (B, R) int64, 0..C, C for
    background; target_deltas: (B, R, 4), used where the target is a class; valid: (B, R) bool. beta: of
    `smooth_l1`. Both are summed and divided by the number of regions in the batch, at least 1, averaged over processes.
    """
    classes = deltas.shape[2]
    target_class = target.clamp(max=classes - 1)[..., None, None].expand(-1, -1, 1, 4)
    box = smooth_l1(deltas.gather(2, target_class).squeeze(2), target_deltas, beta).sum(-1)
    count = world_mean(valid.sum(), min_total=1.0)
    return {
        "classification": _mean(_cross_entropy(logits, target), valid, count),
        "box": _mean(box, valid & (target < classes), count),
    }


def hard_regions(
    logits: Tensor, deltas: Tensor, target: Tensor, target_deltas: Tensor, valid: Tensor, number: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return cross-entropy and smooth L1 of each region, (B, R) each, and which of them are hard, (B, R) bool.

    Hard are in each image the `number` valid regions of the largest sum of both (OHEM: Shrivastava et al., 2016;
    without NMS, as R-FCN's code has it); all valid ones where `number` is None. Arguments: of `ohem_loss`.
    """
    entropy = _cross_entropy(logits, target)
    positive = target < logits.shape[-1] - 1
    box = torch.where(positive, smooth_l1(deltas, target_deltas).sum(-1), 0)
    if number is None or number >= valid.shape[1]:
        return entropy, box, valid
    index = (entropy + box).detach().masked_fill(~valid, -torch.inf).topk(number, dim=1).indices
    return entropy, box, torch.zeros_like(valid).scatter_(1, index, True) & valid


def ohem_loss(
    logits: Tensor,
    deltas: Tensor,
    target: Tensor,
    target_deltas: Tensor,
    valid: Tensor,
    number: int | None = None,
) -> dict[str, Tensor]:
    """Return the loss {"classification", "box"} of the hardest regions (R-FCN, section 2.2, with lambda = 1).

    logits: (B, R, C + 1), background last; deltas: (B, R, 4), one set for all classes; target: (B, R) int64, 0..C, C
    for background; target_deltas: (B, R, 4), used where the target is a class; valid: (B, R) bool; number: see
    `hard_regions`. Both are summed and divided by the number of hard regions in the batch, at least 1, averaged over
    processes.
    """
    entropy, box, hard = hard_regions(logits, deltas, target, target_deltas, valid, number)
    count = world_mean(hard.sum(), min_total=1.0)
    return {"classification": _mean(entropy, hard, count), "box": _mean(box, hard, count)}


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Of logits (B, R, C + 1) and target (B, R): (B, R) float32."""
    return F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), reduction="none").view_as(target)


def _mean(loss: Tensor, counted: Tensor, count: Tensor) -> Tensor:
    return torch.where(counted, loss, 0).sum() / count
