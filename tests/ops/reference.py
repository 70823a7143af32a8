"""Slow float64 loops written from the papers, and random boxes."""

import itertools
import math

import torch
from torch import Tensor


def random_boxes(*shape: int, size: float = 100.0, side: float = 60.0, grid: float | None = None) -> Tensor:
    """Boxes (*shape, 4) in a square of `size`; on a grid so that many overlaps and scores tie exactly."""
    low = torch.rand(*shape, 2) * size
    boxes = torch.cat((low, low + torch.rand(*shape, 2) * side), -1)
    return boxes if grid is None else (boxes / grid).round() * grid


def iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0.0, x2 - x1) * max(0.0, y2 - y1) for x1, y1, x2, y2 in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union > 0 else 0.0


def iou_matrix(a: Tensor, b: Tensor) -> Tensor:
    rows = [[iou(x, y) for y in b.tolist()] for x in a.tolist()]
    return torch.tensor(rows, dtype=torch.float64).view(len(a), len(b))


def greedy_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None,
    *,
    threshold: float,
    top_k: int,
    max_out: int,
    score: float = -math.inf,
    valid: Tensor | None = None,
) -> list[int]:
    """NMS of one image: boxes (N, 4), scores (N,), labels (N,) or None."""
    pairs, values = boxes.double().tolist(), scores.tolist()
    classes = [0] * len(values) if labels is None else labels.tolist()
    members: dict[int, list[int]] = {}
    for i in sorted(range(len(values)), key=lambda i: -values[i] if values[i] == values[i] else math.inf):
        if values[i] > score and classes[i] >= 0 and (valid is None or valid[i]):
            members.setdefault(classes[i], []).append(i)
    kept = []
    for ranked in members.values():
        mine: list[int] = []
        for i in ranked[:top_k]:
            if all(map(math.isfinite, pairs[i])) and all(iou(pairs[i], pairs[j]) <= threshold for j in mine):
                mine.append(i)
        kept += mine
    return sorted(kept, key=lambda i: (-values[i], i))[:max_out]


def match_ssd(
    overlap: Tensor, valid: Tensor, ignore: Tensor, threshold: float
) -> tuple[list[int], list[tuple[int, int]]]:
    """One image: overlap (N, A). Returns each anchor's object, -1 or -2, and the greedy pairs in their order."""
    count, anchors = overlap.shape
    table = overlap.tolist()
    used = [n for n in range(count) if valid[n] and not ignore[n]]
    free_objects, free_anchors, pairs = set(used), set(range(anchors)), []
    while True:
        rest = [(-table[n][a], n, a) for n, a in itertools.product(free_objects, free_anchors) if table[n][a] > 0]
        if not rest:
            break
        _, n, a = min(rest)
        pairs.append((n, a))
        free_objects.remove(n)
        free_anchors.remove(a)
    result = []
    for a in range(anchors):
        best = min(((-table[n][a], n) for n in used), default=(0.0, -1))
        hidden = max((table[n][a] for n in range(count) if valid[n] and ignore[n]), default=0.0)
        if -best[0] >= threshold and best[1] >= 0:
            result.append(best[1])
        else:
            result.append(-2 if hidden >= threshold else -1)
    for n, a in pairs:
        result[a] = n
    return result, pairs


def match_rpn(
    overlap: Tensor, valid: Tensor, ignore: Tensor, inside: Tensor, positive: float, negative: float
) -> list[int]:
    """One image: overlap (N, A). Returns each anchor's object, -1 or -2."""
    count, anchors = overlap.shape
    table = overlap.tolist()
    used = [n for n in range(count) if valid[n] and not ignore[n]]
    most = {n: max((table[n][a] for a in range(anchors) if inside[a]), default=0.0) for n in used}
    result = []
    for a in range(anchors):
        best = min(((-table[n][a], n) for n in used), default=(0.0, -1))
        hidden = max((table[n][a] for n in range(count) if valid[n] and ignore[n]), default=0.0)
        forced = any(table[n][a] == most[n] > 0 for n in used)
        if not inside[a]:
            result.append(-2)
        elif used and (-best[0] >= positive or forced):
            result.append(best[1])
        else:
            result.append(-1 if -best[0] < negative and hidden < positive else -2)
    return result


def match_regions(
    overlap: Tensor, valid: Tensor, ignore: Tensor, real: Tensor, foreground: float, background: tuple[float, float]
) -> list[int]:
    """One image: overlap (N, R). Returns each region's object, -1 or -2."""
    count, regions = overlap.shape
    table = overlap.tolist()
    used = [n for n in range(count) if valid[n] and not ignore[n]]
    result = []
    for r in range(regions):
        best = min(((-table[n][r], n) for n in used), default=(0.0, -1))
        hidden = max((table[n][r] for n in range(count) if valid[n] and ignore[n]), default=0.0)
        if not real[r]:
            result.append(-2)
        elif used and -best[0] >= foreground:
            result.append(best[1])
        elif hidden >= foreground or not background[0] <= -best[0] < background[1]:
            result.append(-2)
        else:
            result.append(-1)
    return result


def hard_negatives(loss: list[float], positive: list[bool], candidates: list[bool], ratio: float) -> list[bool]:
    """One image."""
    ranked = sorted((i for i, c in enumerate(candidates) if c), key=lambda i: (-loss[i], i))
    chosen = set(ranked[: math.floor(ratio * sum(positive))])
    return [i in chosen for i in range(len(loss))]
