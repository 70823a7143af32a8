"""Which object each reference box is matched to."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.ops.boxes import box_iou

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True)
class Match:
    """index: (B, A) int64, the object of each anchor, or BACKGROUND (-1), or IGNORED (-2: neither).

    iou: (B, A) the anchor's best IoU with any object that is trained on, 0 where there is none.
    """

    index: Tensor
    iou: Tensor


@torch.no_grad()
def match_ssd(boxes: Tensor, valid: Tensor, ignore: Tensor | None, anchors: Tensor, threshold: float = 0.5) -> Match:
    """Match default boxes to objects (SSD, section 2.2 and the authors' Caffe code).

    boxes: (B, N, 4) xyxy; valid: (B, N) bool, False for padding; anchors: (A, 4). ignore: (B, N) bool, objects not
    trained on, or None to train on all.

    First the greedy bipartite step: of all pairs of a free object and a free anchor the one of highest IoU is
    matched, again and again, so that no object loses its anchor to another; an object that overlaps no free anchor
    gets none. Then each anchor that is still free goes to its best object if their IoU is >= threshold. Ties go to
    the lowest object, then the lowest anchor. Anchors that reach the threshold with ignored objects only are IGNORED.

        >>> anchors = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 10, 9], [50.0, 50, 60, 60]])
        >>> match_ssd(torch.tensor([[[0.0, 0, 10, 10]]]), torch.tensor([[True]]), None, anchors).index
        tensor([[ 0,  0, -1]])
    """
    iou, on_ignored = _overlap(boxes, valid, ignore, anchors, threshold)
    best, index = iou.max(1)
    index = torch.where(best >= threshold, index, torch.where(on_ignored, IGNORED, BACKGROUND))
    if len(anchors) == 0:
        return Match(index, best)
    has_anchor, anchor = _bipartite(iou)
    # objects without an anchor write to a column that is dropped
    index = F.pad(index, (0, 1))
    objects = torch.arange(iou.shape[1], device=index.device).expand_as(anchor)
    index.scatter_(1, torch.where(has_anchor, anchor, len(anchors)), objects)
    return Match(index[:, :-1], best)


@torch.no_grad()
def match_rpn(
    boxes: Tensor,
    valid: Tensor,
    ignore: Tensor | None,
    anchors: Tensor,
    inside: Tensor | None = None,
    fg_iou: float = 0.7,
    bg_iou: float = 0.3,
) -> Match:
    """Match the RPN's anchors to objects (Faster R-CNN, section 3.1.2, and the authors' Python code).

    boxes: (B, N, 4) xyxy; valid: (B, N) bool, False for padding; ignore: (B, N) bool, objects not trained on, or None;
    anchors: (A, 4). inside: (B, A) bool, anchors that do not cross the image's border; the others are IGNORED. None
    for all, as RetinaNet has it with `fg_iou` .5 and `bg_iou` .4 (Focal loss, section 4).

    An anchor is positive for the object that it overlaps most where that IoU is >= `fg_iou`, or where no other anchor
    overlaps some object more (all that tie, with IoU > 0); BACKGROUND where its best IoU is < `bg_iou`; else IGNORED,
    as are anchors that would be positive for ignored objects only. A forced anchor regresses to the object that the
    anchor overlaps most, as in the code. Ties go to the lowest object.
    """
    iou, on_ignored = _overlap(boxes, valid, ignore, anchors, fg_iou)
    if inside is not None:
        iou.masked_fill_(~inside.unsqueeze(1), 0)
    best, index = iou.max(1)
    best_of_object = iou.amax(2, keepdim=True)
    forced = ((iou == best_of_object) & (best_of_object > 0)).any(1)
    positive = (best >= fg_iou) | forced
    state = torch.where((best < bg_iou) & ~on_ignored, BACKGROUND, IGNORED)
    matched = torch.where(positive, index, state)
    return Match(matched if inside is None else torch.where(inside, matched, IGNORED), best)


@torch.no_grad()
def match_regions(
    boxes: Tensor,
    valid: Tensor,
    ignore: Tensor | None,
    regions: Tensor,
    region_valid: Tensor,
    fg_iou: float = 0.5,
    bg_iou: tuple[float, float] = (0.0, 0.5),
) -> Match:
    """Match regions to objects (Fast R-CNN, section 2.3).

    boxes: (B, N, 4) xyxy; valid: (B, N) bool; ignore: (B, N) bool, objects not trained on, or None; regions: (B, R, 4)
    with region_valid (B, R) bool, False for padding, which is IGNORED.

    A region belongs to the object that it overlaps most where that IoU is >= `fg_iou`; it is BACKGROUND where its
    best IoU is in [low, high) of `bg_iou`; else IGNORED, as are regions that would belong to ignored objects only.
    Ties go to the lowest object.
    """
    iou, on_ignored = _overlap(boxes, valid, ignore, regions, fg_iou)
    best, index = iou.max(1)
    low, high = bg_iou
    positive = (best >= fg_iou) & (best > 0)
    state = torch.where((best >= low) & (best < high) & ~on_ignored, BACKGROUND, IGNORED)
    return Match(torch.where(region_valid, torch.where(positive, index, state), IGNORED), best)


def _overlap(
    boxes: Tensor, valid: Tensor, ignore: Tensor | None, refs: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return the IoU (B, N, A) of objects and references, 0 for objects that are not trained on; and (B, A) bool,
    whether a reference reaches the threshold with an ignored object.

    Where no image has an object, N is 1 nevertheless, so that there is always a largest IoU.
    """
    if valid.shape[1] == 0:
        boxes, valid, ignore = F.pad(boxes, (0, 0, 0, 1)), F.pad(valid, (0, 1)), None
    iou = box_iou(boxes, refs)
    on_ignored = torch.zeros_like(iou[:, 0], dtype=torch.bool)
    if ignore is not None:
        on_ignored = iou.masked_fill(~(valid & ignore).unsqueeze(-1), 0).amax(1) >= threshold
        valid = valid & ~ignore
    return iou.masked_fill_(~valid.unsqueeze(-1), 0), on_ignored


def _bipartite(iou: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy bipartite matching of iou (B, N, A): whether each object has an anchor, and which, both (B, N).

    Greedy over all pairs in one strict order gives the only stable matching, which deferred acceptance also finds:
    each object asks its best anchor, each anchor holds the best object that asked, and the others ask again where
    they would beat the holder. After r rounds the r best pairs are settled, so there are at most N; since objects
    seldom want the same anchor there are about three, and they touch only the rows of objects which were turned down.
    """
    batch, count, anchors = iou.shape
    value, anchor = iou.max(-1)  # what each object asks for
    # what each anchor holds; the last column takes what losers write
    held = iou.new_zeros(batch, anchors + 1)
    holder = anchor.new_full((batch, anchors + 1), -1)
    objects = torch.arange(count, device=iou.device)
    earlier = objects.unsqueeze(1) < objects
    image = torch.arange(batch, device=iou.device).unsqueeze(1)
    while True:
        this, other = value.unsqueeze(1), value.unsqueeze(2)  # [b, other, this]
        same_anchor = anchor.unsqueeze(1) == anchor.unsqueeze(2)
        beaten = (other > this) | ((other == this) & earlier)
        lost = (same_anchor & beaten).any(1) & (value > 0)
        winner = ~lost & (value > 0)
        column = torch.where(winner, anchor, anchors)
        held[image, column] = value
        holder[image, column] = objects.expand(batch, count)
        # A host sync a round: only the few rows that lost are searched again, not (B, N, A).
        rows, losers = lost.nonzero(as_tuple=True)
        if len(rows) == 0:
            return winner, anchor
        offered = iou[rows, losers]
        held_iou, held_by = held[rows, :-1], holder[rows, :-1]
        refused = (held_iou > offered) | ((held_iou == offered) & (held_by < losers.unsqueeze(1)))
        value[rows, losers], anchor[rows, losers] = offered.masked_fill_(refused, 0).max(-1)
