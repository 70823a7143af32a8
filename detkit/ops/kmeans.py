"""Anchors by k-means with the IoU of shapes (YOLO9000, section 2, dimension clusters)."""

import torch
from torch import Tensor

RUNS, ROUNDS = 8, 300  # from other centroids each; rounds of one, at most


def iou_kmeans(sides: Tensor, count: int, seed: int = 0) -> tuple[Tensor, float]:
    """Return `count` centroids (count, 2) of the shapes (N, 2), smallest area first, and the mean best IoU of shapes.

    sides: width and height, > 0. The distance is 1 - IoU of two boxes with a common corner, a centroid the mean of its
    shapes. Of several runs from shapes drawn at random the best one. ValueError for fewer different shapes than
    centroids.
    """
    sides = sides.double()
    different = sides.unique(dim=0)
    if len(different) < count:
        raise ValueError(f"{len(different)} different shapes are too few for {count} centroids")
    random = torch.Generator().manual_seed(seed)
    best, best_iou = different[:count], -1.0
    for _ in range(RUNS):
        centroids = different[torch.randperm(len(different), generator=random)[:count]]
        nearest = None
        for _ in range(ROUNDS):
            now = shape_iou(sides, centroids).argmax(1)
            if nearest is not None and torch.equal(now, nearest):
                break
            nearest = now
            sizes = torch.bincount(nearest, minlength=count).unsqueeze(1)
            sums = torch.zeros_like(centroids).index_add_(0, nearest, sides)
            centroids = torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
        mean_iou = float(shape_iou(sides, centroids).amax(1).mean())
        if mean_iou > best_iou:
            best, best_iou = centroids, mean_iou
    return best[best.prod(1).argsort()], best_iou


def shape_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the IoU (..., N, K) of boxes with sides (..., N, 2) and (K, 2) that share a corner."""
    shared = torch.minimum(a.unsqueeze(-2), b).prod(-1)
    return shared / (a.prod(-1).unsqueeze(-1) + b.prod(-1) - shared)
