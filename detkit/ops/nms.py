"""Non-maximum suppression of a whole batch at once.

Greedy and exact: in each group (one class in one image) boxes are taken best first, and a box is dropped when its IoU
with a box that was kept before is above the threshold. Groups are kept apart by their index alone, never by shifting
coordinates, which rounds boxes and flips decisions.
"""

import torch
from torch import Tensor

from detkit.ops.boxes import box_iou

# Elements of the largest temporary matrix: on a CPU what stays in cache, on a GPU 64 Mi (256 MiB of float32).
CPU_ELEMENTS = 1 << 20
GPU_ELEMENTS = 1 << 26
BLOCK = 256


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

    boxes: (B, N, 4) xyxy; scores: (B, N); labels: (B, N) int64, or None for one class; valid: (B, N) bool.
    Only boxes with score > `score`, label >= 0 and valid take part (so a score of NaN or -inf never does).
    top_k: the best boxes of each class and image that are looked at. max_out: boxes kept in an image, over all classes.
    A box is dropped when its IoU with a better one that is kept in its class is > `iou`. Equal scores: the lower index
    is better. Boxes that are not finite are dropped.
    """
    batch, count = scores.shape
    real = scores > score
    if valid is not None:
        real &= valid
    if labels is not None:
        real &= labels >= 0
    if batch == 0 or count == 0 or top_k <= 0 or max_out <= 0:
        return scores.new_full((batch, max(max_out, 0)), -1, dtype=torch.int64)
    # best first in each image; boxes that do not take part come last
    order = scores.float().masked_fill(~real, -torch.inf).argsort(dim=1, descending=True, stable=True)
    real = real.gather(1, order)

    # Then by group, which a stable sort leaves best first. The sizes of groups are data: on a GPU these are host syncs.
    image = torch.arange(batch, device=scores.device).unsqueeze(1)
    if labels is None:
        classes = 1
        group = image.expand(batch, count)
    else:
        classes = int(labels.max()) + 1
        group = image * classes + labels.gather(1, order)
    groups = batch * max(classes, 1)
    group = torch.where(real, group, groups).flatten()
    slot = group.argsort(stable=True)
    sizes = torch.bincount(group, minlength=groups + 1)
    width = min(int(sizes[:-1].max()), top_k)
    starts = sizes.cumsum(0) - sizes
    ranks = torch.arange(width, device=scores.device)
    inside = ranks < sizes[:-1].unsqueeze(1)
    table = slot[(starts[:-1].unsqueeze(1) + ranks).clamp(max=len(slot) - 1)]  # (groups, width) of (image, rank)

    rows = (order + image * count).flatten()[table]
    keep = greedy(boxes.reshape(-1, 4)[rows], inside, iou)

    # back to (image, rank), where the kept ones are counted off best first
    kept = torch.zeros(batch * count + 1, dtype=torch.bool, device=scores.device)
    kept[torch.where(keep, table, batch * count)] = True
    kept = kept[:-1].view(batch, count)
    place = kept.cumsum(1) - 1
    place = torch.where(kept & (place < max_out), place, max_out)
    out = order.new_full((batch, max_out + 1), -1)
    return out.scatter_(1, place, order)[:, :-1]


@torch.no_grad()
def nms_dense(
    boxes: Tensor, scores: Tensor, *, iou: float, top_k: int, max_out: int, score: float = -torch.inf
) -> tuple[Tensor, Tensor]:
    """NMS per class of a detector's raw output: each box has a score for every class.

    boxes: (B, A, 4) shared by the classes, or (B, A, C, 4); scores: (B, A, C). Returns the box index (B, max_out) and
    the label (B, max_out), best first, both padded with -1: what `nms` gives for the A * C boxes laid flat.
    """
    batch, anchors, classes = scores.shape
    if batch == 0 or anchors * classes == 0 or top_k <= 0 or max_out <= 0:
        empty = scores.new_full((batch, max(max_out, 0)), -1, dtype=torch.int64)
        return empty, empty.clone()
    # One int64 key sorts by score, then by lower index: the score's bits, made monotonic, above the index from the end.
    # Keys differ, so that topk, which promises nothing about ties, has none to break. Adding 0 makes -0 equal to 0.
    scores = scores.float()
    bits = (scores + 0.0).view(torch.int32).long()
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    last = anchors * classes - 1
    backward = last - torch.arange(last + 1, device=scores.device).view(anchors, classes)
    nothing = torch.iinfo(torch.int64).min
    key = torch.where(scores > score, (bits << 32) + backward, nothing)
    key = key.transpose(1, 2).topk(min(top_k, anchors), dim=2).values  # (B, C, K)

    real = key > nothing
    flat = torch.where(real, last - (key & 0xFFFFFFFF), 0)
    if boxes.ndim == 3:
        index = flat // classes
        chosen = boxes.gather(1, index.flatten(1).unsqueeze(-1).expand(-1, -1, 4))
    else:
        chosen = boxes.flatten(1, 2).gather(1, flat.flatten(1).unsqueeze(-1).expand(-1, -1, 4))
    keep = greedy(chosen.view(batch * classes, -1, 4), real.view(batch * classes, -1), iou)

    key = key.masked_fill(~keep.view_as(key), nothing).flatten(1)
    key = key.topk(min(max_out, key.shape[1]), dim=1).values
    key = torch.nn.functional.pad(key, (0, max_out - key.shape[1]), value=nothing)
    flat = last - (key & 0xFFFFFFFF)
    real = key > nothing
    return torch.where(real, flat // classes, -1), torch.where(real, flat % classes, -1)


def greedy(boxes: Tensor, valid: Tensor, iou: float) -> Tensor:
    """Greedy NMS of groups: boxes (G, K, 4) best first, valid (G, K) with the padding last -> kept (G, K) bool."""
    keep = valid & boxes.isfinite().all(-1)
    groups, width = keep.shape
    cpu = boxes.device.type == "cpu"
    elements = CPU_ELEMENTS if cpu else GPU_ELEMENTS
    at_once = max(1, elements // max(1, min(width, BLOCK) * width))
    # Loops over chunks of groups and blocks of boxes bound the memory, whatever the sizes.
    for first in range(0, groups, at_once):
        part, chosen = keep[first : first + at_once], boxes[first : first + at_once]
        for start in range(0, width, BLOCK):
            stop = min(start + BLOCK, width)
            over = box_iou(chosen[:, start:stop], chosen[:, start:]) > iou
            part[:, start:stop] = _settle(over[:, :, : stop - start].triu(1), part[:, start:stop])
            if stop < width:
                part[:, stop:] &= ~(over[:, :, stop - start :] & part[:, start:stop].unsqueeze(2)).any(1)
    return keep


def _settle(over: Tensor, valid: Tensor) -> Tensor:
    """Solve keep[j] = valid[j] and no i < j with keep[i] and over[i, j]; over: (G, K, K) upper triangular.

    Iterating the equation settles the boxes in the order of the longest chain of suppressors above them, so that it
    ends, exactly, after as many rounds as the longest chain has links: a few, K at most.
    """
    keep = valid
    while True:
        new = valid & ~(over & keep.unsqueeze(2)).any(1)
        if torch.equal(new, keep):  # a host sync on a GPU: one a round instead of K rounds always
            return new
        keep = new
