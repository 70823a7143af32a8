"""Non-maximum suppression of a whole batch at once.

Greedy and exact: in each group (one class in one image) boxes are taken best first, and a box is dropped when its IoU
with a box that was kept before is above the threshold. Groups are kept apart by their index alone, never by shifting
coordinates, which rounds boxes and flips decisions.

Candidates are held as flat lists, since how many an image or a class has differs by orders of magnitude and padding
all to the largest would cost far more than what it saves: on a GPU, reading the sizes is a handful of host syncs a
batch, marked below.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from detkit.ops.boxes import box_iou

# Boxes of a group that are settled at once, and pairs of boxes compared at once (float32: 16 MiB and 256 MiB). Small
# blocks compare fewer boxes that are dropped anyway, many pairs at once make fewer calls.
CPU_BLOCK, CPU_PAIRS = 128, 1 << 22
GPU_BLOCK, GPU_PAIRS = 1024, 1 << 26


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
    top_k: how many boxes of each class in each image are looked at, the best ones. max_out: how many stay in an image,
    over all classes. A box is dropped when its IoU with a better one that stays in its class is > `iou`. Of equal
    scores the lower index is better. Boxes with a coordinate that is not finite are dropped.
    """
    batch, count = scores.shape
    if boxes.shape != (batch, count, 4):
        raise ValueError(f"nms: expected boxes ({batch}, {count}, 4) for scores ({batch}, {count}), got {boxes.shape}")
    real = scores > score
    if valid is not None:
        real &= valid
    if labels is not None:
        real &= labels >= 0
    place = real.flatten().nonzero().squeeze(1)  # host sync
    image = place // max(count, 1)
    group, groups = image, batch
    if labels is not None and len(place):
        label = labels.flatten()[place]
        classes = int(label.max()) + 1  # host sync
        group, groups = image * classes + label, batch * classes
    kept, rank = _suppress(
        boxes.reshape(-1, 4)[place], scores.flatten()[place], image, batch, group, groups, iou, top_k, max_out
    )
    out = place.new_full((batch, max_out), -1)
    out[image[kept], rank] = place[kept] % max(count, 1)
    return out


@torch.no_grad()
def nms_dense(
    boxes: Tensor, scores: Tensor, *, iou: float, top_k: int, max_out: int, score: float | Tensor = -torch.inf
) -> tuple[Tensor, Tensor]:
    """NMS per class of a detector's raw output, where each box has a score for every class.

    boxes: (B, A, 4) shared by the classes, or (B, A, C, 4); scores: (B, A, C). Returns the box index (B, max_out) and
    the label (B, max_out), best first, both padded with -1. The same as `nms` of the A * C boxes laid flat.
    score: one for all classes, or (C,), one for each.
    """
    found = topk_candidates(boxes, scores, top_k, score)
    kept, rank = _suppress(
        found.boxes,
        found.scores,
        found.image,
        len(scores),
        found.group,
        len(scores) * scores.shape[2],
        iou,
        top_k,
        max_out,
    )
    out = found.image.new_full((2, len(scores), max_out), -1)
    out[:, found.image[kept], rank] = torch.stack((found.index[kept], found.label[kept]))
    return out[0], out[1]


@dataclass(frozen=True)
class Candidates:
    """M pairs of box and class of a batch, flat: boxes (M, 4), scores (M,), the image that each belongs to, its index
    among that image's boxes, its label, and its group, image * C + label: (M,) int64."""

    boxes: Tensor
    scores: Tensor
    image: Tensor
    index: Tensor
    label: Tensor
    group: Tensor


def topk_candidates(boxes: Tensor, scores: Tensor, top_k: int, score: float | Tensor) -> Candidates:
    """Return what of a detector's raw output, see `nms_dense`, is above its threshold and may be among the best top_k
    of its class in its image."""
    batch, anchors, classes = scores.shape
    if boxes.shape not in ((batch, anchors, 4), (batch, anchors, classes, 4)):
        raise ValueError(
            f"nms_dense: expected boxes ({batch}, {anchors}, 4) or ({batch}, {anchors}, {classes}, 4) for scores "
            f"({batch}, {anchors}, {classes}), got {tuple(boxes.shape)}"
        )
    real = scores > score
    if 0 < top_k < anchors:
        # Sorting is spared to all but the best of a crowded class. What equals the last score stays for now, since
        # topk promises nothing about which of equals it takes; who makes a table of it cuts it off in order.
        b, c = (real.sum(1) > top_k).nonzero(as_tuple=True)  # host sync
        if len(b):
            rows = scores[b, :, c].masked_fill(~real[b, :, c], -torch.inf)
            real[b, :, c] &= rows >= rows.topk(top_k).values[:, -1:]
    place = real.flatten().nonzero().squeeze(1)  # host sync
    box, label = place // max(classes, 1), place % max(classes, 1)
    image, index = box // max(anchors, 1), box % max(anchors, 1)
    chosen = boxes.reshape(-1, 4)[box if boxes.ndim == 3 else place]
    return Candidates(chosen, scores.flatten()[place], image, index, label, image * classes + label)


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
    """Return (B, N) int64: of each box, which box removed it; its own index where it stays; -1 where it took no part.

    Arguments as in `nms`, whose boxes are those that stay, before `max_out` cuts them. A box is removed by the best box
    that stays in its class and overlaps it more than `iou`, the first that greedy suppression compares it with. No part
    took what the threshold, `valid` or `top_k` leave out, and boxes with a coordinate that is not finite.
    """
    batch, count = scores.shape
    if labels is None:
        labels = torch.zeros_like(scores, dtype=torch.int64)
    real = (scores > score) & (labels >= 0)
    if valid is not None:
        real &= valid
    place = real.flatten().nonzero().squeeze(1)  # host sync
    out = place.new_full((batch * count,), -1)
    if len(place) == 0 or top_k <= 0:
        return out.view(batch, count)
    label = labels.flatten()[place]
    classes = int(label.max()) + 1  # host sync
    group = place // count * classes + label
    table, inside = table_of(group, batch * classes, descending(scores.flatten()[place]), top_k)
    rows = boxes.reshape(-1, 4)[place][table]
    keep = _greedy(rows, inside, iou)
    own = torch.arange(table.shape[1], device=table.device).expand_as(table)
    by = torch.where(keep, own, _first_over(rows, keep, iou))
    out[place[table[inside]]] = place[table.gather(1, by)[inside]] % count
    return out.view(batch, count).masked_fill_(~boxes.isfinite().all(-1), -1)


def _first_over(boxes: Tensor, keep: Tensor, iou: float) -> Tensor:
    """Boxes (G, K, 4) best first -> of each the first kept box that overlaps it too much (G, K), 0 where none does."""
    pairs = CPU_PAIRS if boxes.device.type == "cpu" else GPU_PAIRS
    columns = max(1, pairs // max(1, keep.numel()))
    stays = keep.unsqueeze(-1)
    # argmax gives the first of equals; pieces, so that memory stays bounded
    return torch.cat([(_over(boxes, some, iou) * stays).argmax(1) for some in boxes.split(columns, 1)], 1)


def _suppress(
    boxes: Tensor,
    scores: Tensor,
    image: Tensor,
    images: int,
    group: Tensor,
    groups: int,
    iou: float,
    top_k: int,
    max_out: int,
) -> tuple[Tensor, Tensor]:
    """NMS of M candidates that belong to groups, groups to images; of equal scores the earlier candidate is better.

    boxes: (M, 4); scores, image, group: (M,). Returns which candidates stay, image by image and best first, and each
    one's rank in its image, below max_out.
    """
    if not 0 <= iou <= 1:
        raise ValueError(f"nms: iou {iou} is not between 0 and 1")
    if len(scores) == 0 or top_k <= 0 or max_out <= 0:
        return group[:0], group[:0]
    best_first = descending(scores)
    table, inside = table_of(group, groups, best_first, top_k)
    keep = _greedy(boxes[table], inside, iou)
    stays = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    stays[table[keep]] = True
    table, inside = table_of(image, images, best_first[stays[best_first]], max_out)  # host sync
    return table[inside], inside.nonzero()[:, 1]  # host syncs: how many stay is data


def descending(scores: Tensor) -> Tensor:
    """Stable order of scores (M,), highest first.

    The bits of a float, its lower ones flipped where it is negative, are an integer of the same order; integers are
    sorted several times faster on a CPU (radix sort, ascending only). Adding 0 makes -0 equal to 0.
    """
    bits = (scores.float() + 0.0).view(torch.int32)
    return (~(bits ^ ((bits >> 31) & 0x7FFFFFFF))).argsort(stable=True)


def table_of(key: Tensor, keys: int, order: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Write candidates that are listed in `order` into rows by their key, each row in that order.

    Returns (keys, K) candidates and (keys, K) bool where there is one; K is the longest row, cut to `most`.
    """
    key = key[order]
    order = order[key.int().argsort(stable=True)]
    sizes = torch.bincount(key, minlength=keys)
    width = min(int(sizes.max()), most) if keys else 0  # host sync
    rank = torch.arange(width, device=order.device)
    inside = rank < sizes.unsqueeze(1)
    start = (sizes.cumsum(0) - sizes).unsqueeze(1)
    return order[torch.where(inside, start + rank, 0)], inside


def _greedy(boxes: Tensor, valid: Tensor, iou: float) -> Tensor:
    """Greedy NMS of rows: boxes (G, K, 4) best first, valid (G, K) with the padding last -> kept (G, K) bool."""
    block, pairs = (CPU_BLOCK, CPU_PAIRS) if boxes.device.type == "cpu" else (GPU_BLOCK, GPU_PAIRS)
    sizes, largest = valid.sum(1).sort(descending=True)
    lengths = sizes.tolist()  # host sync
    keep = torch.zeros_like(valid)
    first = 0
    # Rows of like length together, so many that memory stays bounded.
    while first < len(lengths) and lengths[first] > 0:
        width = lengths[first]
        rows = largest[first : first + max(1, pairs // (min(width, block) * width))]
        keep[rows, :width] = _greedy_rows(boxes[rows, :width], valid[rows, :width], iou, block)
        first += len(rows)
    return keep


def _greedy_rows(boxes: Tensor, valid: Tensor, iou: float, block: int) -> Tensor:
    """Greedy NMS of rows that are compared at once, by blocks: settle the best ones, then drop what they suppress."""
    width = valid.shape[1]
    keep = valid.new_zeros(len(valid), width + 1)  # the last column takes what padding writes
    valid = valid & boxes.isfinite().all(-1)
    boxes = torch.where(valid.unsqueeze(-1), boxes, 0)  # boxes of no area overlap nothing
    place = torch.arange(width, device=valid.device).expand_as(valid)
    while True:
        head, rest = boxes[:, :block], boxes[:, block:]
        stays = _settle(_over(head, head, iou).triu_(1), valid[:, :block])
        keep.scatter_(1, torch.where(stays, place[:, :block], width), stays)
        if rest.shape[1] == 0:
            return keep[:, :width]
        # Only boxes that are still in the game are packed and go on: two host syncs a block.
        head, _, _ = _pack(stays, head, place[:, :block])
        left = valid[:, block:] & (_over(head, rest, iou).amax(1) == 0)
        boxes, valid, place = _pack(left, rest, place[:, block:])


def _over(a: Tensor, b: Tensor, iou: float) -> Tensor:
    """1. where the IoU of a (G, M, 4) and b (G, N, 4) is above the threshold, else 0: floats, to be multiplied."""
    overlap = box_iou(a, b)
    return torch.gt(overlap, iou, out=overlap)


def _settle(over: Tensor, valid: Tensor) -> Tensor:
    """Solve keep[j] = valid[j] and no i < j with keep[i] and over[i, j]; over: (G, K, K) upper triangular.

    Iterating the equation settles the boxes in the order of the longest chain of suppressors above them, so that it
    ends, exactly, after as many rounds as the longest chain has links: a few, K at most.
    """
    keep = valid
    while True:
        new = valid & (torch.bmm(keep.to(over.dtype).unsqueeze(1), over).squeeze(1) == 0)
        if torch.equal(new, keep):  # host sync: one a round, in place of always K rounds
            return new
        keep = new


def _pack(mask: Tensor, boxes: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the boxes (G, K, 4) and places (G, K) under mask (G, K) to the front; returns them and where they are."""
    ordinal = mask.cumsum(1)
    width = max(1, int(ordinal[:, -1].max()))  # host sync
    source = torch.zeros(len(mask), width + 1, dtype=torch.int64, device=mask.device)
    source.scatter_(
        1, torch.where(mask, ordinal - 1, width), torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    )
    source = source[:, :width]
    real = torch.arange(width, device=mask.device) < ordinal[:, -1:]
    boxes = boxes.gather(1, source.unsqueeze(-1).expand(-1, -1, 4)) * real.unsqueeze(-1)
    return boxes, real, place.gather(1, source)
