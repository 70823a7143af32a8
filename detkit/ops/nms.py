"""Non-maximum suppression of a batch at once.

Greedy and exact: in each group (one class in one image) boxes are taken best first, and a box is dropped when its IoU
with a box that was kept before is above the threshold. Groups are kept apart by their index alone, never by shifting
coordinates, which rounds boxes and flips decisions.
"""

import torch
from torch import Tensor

from detkit.ops.boxes import as_float, box_iou, gather_boxes
from detkit.ops.candidates import Candidates, ScoredBoxes, score_boxes
from detkit.ops.sorting import argsort_descending, ranked_rows

# Boxes of a group that are settled at once, and pairs of boxes compared at once (float32: 16 MiB and 256 MiB). Small
# blocks compare fewer boxes that are dropped anyway, many pairs at once make fewer calls.
CPU_BLOCK, CPU_PAIRS = 128, 1 << 22
GPU_BLOCK, GPU_PAIRS = 1024, 1 << 26
# On a CPU so many of the best candidates are settled first for each that may stay: of SSD300's on VOC, at scores from
# .01 on, they are enough in nineteen of twenty images.
CPU_FIRST = 12
CPU_LOOP = 400  # boxes of a group up to which torchvision's loop, one group after the other, beats blocks on a CPU


@torch.no_grad()
def nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    iou: float,
    top_k: int,
    max_out: int,
    score: float = -torch.inf,
    valid: Tensor | None = None,
) -> Tensor:
    """Return (B, max_out) int64 indices of the boxes that stay, best first, padded with -1.

        >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [1.0, 0, 10, 10], [20.0, 20, 30, 30]]])
        >>> nms(boxes, torch.tensor([[0.8, 0.9, 0.7]]), iou=0.5, top_k=100, max_out=3)
        tensor([[ 1,  2, -1]])

    boxes: (B, N, 4) xyxy; scores: (B, N); labels: (B, N) int64, or None for one class; valid: (B, N) bool.
    Only boxes with score > `score`, label >= 0 and valid take part (so a score of NaN or -inf never does).
    top_k: how many boxes of each class in each image are looked at, the best ones. max_out: how many stay in an image,
    over all classes. A box is dropped when its IoU with a better one that stays in its class is > `iou`. Of equal
    scores the lower index is better. Boxes with a coordinate that is not finite are dropped.
    """
    _check_iou(iou)
    return _suppress(_one_class_each(boxes, scores, labels, score, valid), iou, top_k, max_out)[0]


@torch.no_grad()
def nms_dense(
    boxes: Tensor, scores: Tensor, *, iou: float, top_k: int, max_out: int, score: float | Tensor = -torch.inf
) -> tuple[Tensor, Tensor]:
    """NMS per class of a detector's raw output, where each box has a score for every class.

    boxes: (B, A, 4) shared by the classes, or (B, A, C, 4); scores: (B, A, C). Returns the box index (B, max_out) and
    the label (B, max_out), best first, both padded with -1. The same as `nms` of the A * C boxes laid flat.
    score: one for all classes, or (C,), one for each.
    """
    _check_iou(iou)
    index, label = _suppress(score_boxes(boxes, scores, score), iou, top_k, max_out)
    return index, label


@torch.no_grad()
def nms_suppressors(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    *,
    iou: float,
    top_k: int,
    score: float = -torch.inf,
    valid: Tensor | None = None,
) -> Tensor:
    """Return (B, N) int64: of each box, which box removed it; its index where it stays; -1 where it took no part.

    Arguments as in `nms`, whose boxes are those that stay, before `max_out` cuts them. A box is removed by the best box
    that stays in its class and overlaps it more than `iou`, the first that greedy suppression compares it with. No part
    took what the threshold, `valid` or `top_k` leave out, and boxes with a coordinate that is not finite.
    """
    candidates = _one_class_each(boxes, scores, labels, score, valid).candidates()
    removed_by = candidates.index.new_full(scores.shape, -1)
    if len(candidates.scores) == 0 or top_k <= 0:
        return removed_by
    rows, filled = candidates.rows(argsort_descending(candidates.scores), top_k)
    row_boxes = candidates.boxes[rows]
    keep = _greedy(row_boxes, filled, iou)
    itself = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    suppressor = torch.where(keep, itself, _first_over(row_boxes, keep, iou))
    removed, by = rows[filled], rows.gather(1, suppressor)[filled]
    removed_by[candidates.image[removed], candidates.index[removed]] = candidates.index[by]
    return removed_by.masked_fill_(~boxes.isfinite().all(-1), -1)


def _check_iou(iou: float) -> None:
    if not 0 <= iou <= 1:
        raise ValueError(f"nms: iou {iou} is not between 0 and 1")


def _one_class_each(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, score: float, valid: Tensor | None
) -> ScoredBoxes:
    """Return the arguments of `nms`, and which boxes take part."""
    batch, count = scores.shape
    if boxes.shape != (batch, count, 4):
        raise ValueError(f"nms: expected boxes ({batch}, {count}, 4) for scores ({batch}, {count}), got {boxes.shape}")
    takes_part = scores > score
    if valid is not None:
        takes_part &= valid
    if labels is not None:
        takes_part &= labels >= 0
    return ScoredBoxes(boxes, scores.unsqueeze(-1), takes_part.unsqueeze(-1), labels)


def _suppress(scored: ScoredBoxes, iou: float, top_k: int, max_out: int) -> Tensor:
    """Return the index and the label of the boxes that stay, (2, B, max_out), best first, padded with -1.

    Of equal scores the earlier box, then the earlier class, is better.

    On a CPU each image's best candidates are settled first, since what is worse can't change which of them stay: where
    `max_out` do, or an image has no others, that is the result. A GPU would have to wait for the answer, and compares
    all.
    """
    scores = scored.scores
    if not scores.numel() or top_k <= 0 or max_out <= 0:
        return torch.full((2, len(scores), max_out), -1, device=scores.device)
    if scores.device.type != "cpu":
        candidates = scored.best(top_k).candidates()
        return _best(candidates, _kept(candidates, iou, top_k), max_out)
    candidates, whole = _first(scored, CPU_FIRST * max_out)
    kept = _kept(candidates, iou, top_k)
    found = _best(candidates, kept, max_out)
    enough = torch.bincount(candidates.image[kept], minlength=len(scores)) >= max_out
    left = (~(whole | enough)).nonzero().squeeze(1)  # on a CPU: nothing waits
    if len(left):
        candidates = scored.of(left).best(top_k).candidates()
        found[:, left] = _best(candidates, _kept(candidates, iou, top_k), max_out)
    return found


def _first(scored: ScoredBoxes, first: int) -> tuple[Candidates, Tensor]:
    """Return each image's `first` best candidates, and what equals the last; and (B,) bool: whether those are all.

    On a CPU alone, where no size that is read waits.
    """
    scores = scored.scores
    indices = scored.takes_part.flatten().nonzero().squeeze(1)
    counts = torch.bincount(indices // scores[0].numel(), minlength=len(scores))
    whole = counts <= first
    if not whole.all():
        # image by image: how many candidates one has differs by orders of magnitude
        stays = [
            some >= some.topk(min(first, len(some)), sorted=False).values.amin()
            for some in scores.flatten()[indices].split(counts.tolist())
            if len(some)
        ]
        indices = indices[torch.cat(stays)]
    return scored.at(indices), whole


def _best(candidates: Candidates, kept: Tensor, max_out: int) -> Tensor:
    """Return the index and label of the best `max_out` that stay, see `_suppress`. kept: best first in each image."""
    out = candidates.index.new_full((2, candidates.images, max_out), -1)
    rows, filled = ranked_rows(candidates.image, candidates.images, kept, max_out)
    kept, rank = rows[filled], filled.nonzero()[:, 1]  # host syncs: how many stay is data
    out[:, candidates.image[kept], rank] = torch.stack((candidates.index[kept], candidates.label[kept]))
    return out


def _kept(candidates: Candidates, iou: float, top_k: int) -> Tensor:
    """Return which candidates stay, best first in each image."""
    best_first = argsort_descending(candidates.scores)
    rows, filled = candidates.rows(best_first, top_k)
    keep = _greedy(candidates.boxes[rows], filled, iou)
    stays = torch.zeros(len(candidates.scores), dtype=torch.bool, device=best_first.device)
    stays[rows[keep]] = True
    return best_first[stays[best_first]]  # host sync


def _greedy(boxes: Tensor, valid: Tensor, iou: float) -> Tensor:
    """Greedy NMS of rows: boxes (G, K, 4) best first, valid (G, K) with the padding last -> kept (G, K) bool."""
    cpu = boxes.device.type == "cpu"
    block, pairs = (CPU_BLOCK, CPU_PAIRS) if cpu else (GPU_BLOCK, GPU_PAIRS)
    sizes, longest_first = valid.sum(1).sort(descending=True)
    valid = valid & boxes.isfinite().all(-1)
    lengths = sizes.tolist()  # host sync
    keep = torch.zeros_like(valid)
    first = 0
    # rows of like length together, so many that memory stays bounded
    while first < len(lengths) and lengths[first] > (CPU_LOOP if cpu else 0):
        width = lengths[first]
        count = max(1, pairs // (min(width, block) * width))
        rows = longest_first[first : first + count]
        keep[rows, :width] = _greedy_rows(boxes[rows, :width], valid[rows, :width], iou, block)
        first += len(rows)
    lengths = [length for length in lengths[first:] if length]
    if lengths and cpu:  # so that the rows' numbers wait for no device
        _loop_rows(boxes, valid, iou, longest_first[first : first + len(lengths)].tolist(), lengths, keep)
    return keep


def _loop_rows(boxes: Tensor, valid: Tensor, iou: float, rows: list[int], lengths: list[int], keep: Tensor) -> None:
    """Greedy NMS of rows as in `_greedy`, into `keep`; one after the other, since on a CPU a short row takes less time
    alone than padded among longer ones. lengths: of the rows, up to their last valid box."""
    from torchvision.ops import nms as nms_loop  # only here: commands that compute no boxes begin without it

    boxes = torch.where(valid.unsqueeze(-1), as_float(boxes), 0)  # boxes of no area overlap nothing
    iou = float(torch.tensor(iou, dtype=boxes.dtype))  # as a tensor is compared with it
    width = boxes.shape[1]
    best_first = torch.arange(width, 0, -1, dtype=boxes.dtype)
    kept = [
        nms_loop(boxes[row, :length], best_first[:length], iou).add_(row * width) for row, length in zip(rows, lengths)
    ]
    keep.view(-1)[torch.cat(kept)] = True
    keep &= valid


def _greedy_rows(boxes: Tensor, valid: Tensor, iou: float, block: int) -> Tensor:
    """Greedy NMS of rows that are compared at once: settle a block of the best, drop what it suppresses, go on.

    Boxes that are left are packed after each block; `column` tells where in `keep` each belongs.
    """
    width = valid.shape[1]
    keep = valid.new_zeros(len(valid), width + 1)  # the last column takes what padding writes
    boxes = torch.where(valid.unsqueeze(-1), boxes, 0)  # boxes of no area overlap nothing
    column = torch.arange(width, device=valid.device).expand_as(valid)
    while True:
        head, head_valid, head_column = boxes[:, :block], valid[:, :block], column[:, :block]
        better_over_worse = _over(head, head, iou).triu_(1)
        stays = _settle(better_over_worse, head_valid)
        keep.scatter_(1, torch.where(stays, head_column, width), stays)
        if boxes.shape[1] <= block:
            return keep[:, :width]
        rest, rest_valid, rest_column = boxes[:, block:], valid[:, block:], column[:, block:]
        # both are packed, so that only boxes that still matter are compared: two host syncs a block
        kept, _, _ = _pack(stays, head, head_column)
        clear = _over(kept, rest, iou).amax(1) == 0
        boxes, valid, column = _pack(rest_valid & clear, rest, rest_column)


def _over(a: Tensor, b: Tensor, iou: float) -> Tensor:
    """1. where the IoU of a (G, M, 4) and b (G, N, 4) is above the threshold, else 0: floats, to be multiplied."""
    overlap = box_iou(a, b)
    return torch.gt(overlap, iou, out=overlap)


def _first_over(boxes: Tensor, keep: Tensor, iou: float) -> Tensor:
    """Boxes (G, K, 4) best first -> of each the first kept box that overlaps it too much (G, K), 0 where none does."""
    pairs = CPU_PAIRS if boxes.device.type == "cpu" else GPU_PAIRS
    columns = max(1, pairs // max(1, keep.numel()))
    kept = keep.unsqueeze(-1)
    # argmax gives the first of equals; by pieces, so that memory stays bounded
    return torch.cat([(_over(boxes, piece, iou) * kept).argmax(1) for piece in boxes.split(columns, 1)], 1)


def _settle(over: Tensor, valid: Tensor) -> Tensor:
    """Solve keep[j] = valid[j] and no i < j with keep[i] and over[i, j]; over: (G, K, K) upper triangular.

    Iterating the equation settles the boxes in the order of the longest chain of suppressors above them, so that it
    ends, exactly, after as many rounds as the longest chain has links: a few, K at most.
    """
    keep = valid
    while True:
        suppressors = torch.bmm(keep.to(over.dtype).unsqueeze(1), over).squeeze(1)
        settled = valid & (suppressors == 0)
        if torch.equal(settled, keep):  # host sync: one a round, in place of always K rounds
            return keep
        keep = settled


def _pack(mask: Tensor, boxes: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the boxes (G, K, 4) and columns (G, K) under mask (G, K) to the front of their rows.

    Returns both, as wide as the row with most of them, with boxes 0 for padding; and valid, False there.
    """
    ordinal = mask.cumsum(1)
    counts = ordinal[:, -1:]
    width = max(1, int(counts.max()))  # host sync
    source = torch.zeros(len(mask), width + 1, dtype=torch.int64, device=mask.device)
    target = torch.where(mask, ordinal - 1, width)  # a last column, cut off below, for what is not under the mask
    source.scatter_(1, target, torch.arange(mask.shape[1], device=mask.device).expand_as(mask))
    source = source[:, :width]
    valid = torch.arange(width, device=mask.device) < counts
    boxes = gather_boxes(boxes, source) * valid.unsqueeze(-1)
    return boxes, valid, column.gather(1, source)
