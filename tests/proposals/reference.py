"""Selective search's parts once more, as slow plain loops in float64, written from the papers."""

import math
from collections.abc import Iterator

import numpy as np

from detkit.proposals.regions import COLOURS, Regions

AHEAD = ((1, 0), (-1, 1), (0, 1), (1, 1))  # (right, down) of the neighbours that follow a pixel


def pixel_pairs(height: int, width: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the edges of the 8-connected grid, each once, row by row."""
    for y in range(height):
        for x in range(width):
            for right, down in AHEAD:
                if y + down < height and 0 <= x + right < width:
                    yield (y, x), (y + down, x + right)


def segment(image: np.ndarray, k: float, smallest: int) -> np.ndarray:
    """Felzenszwalb and Huttenlocher (2004), algorithm 1, with sets of pixels, then their merging of small regions."""
    height, width = image.shape[:2]
    pixels = image.astype(np.float64)
    edges = [(math.dist(pixels[a], pixels[b]), a, b) for a, b in pixel_pairs(height, width)]
    edges.sort(key=lambda edge: edge[0])
    owner = {(y, x): (y, x) for y in range(height) for x in range(width)}
    members = {pixel: [pixel] for pixel in owner}
    tree: dict[tuple[int, int], list[float]] = {pixel: [] for pixel in owner}  # weights of the spanning tree

    def join(a: tuple[int, int], b: tuple[int, int], weight: float) -> None:
        for pixel in members[b]:
            owner[pixel] = a
        members[a] += members.pop(b)
        tree[a] += [*tree.pop(b), weight]

    for weight, first, second in edges:
        a, b = owner[first], owner[second]
        if a != b:
            inner = min(max(tree[c], default=0.0) + k / len(members[c]) for c in (a, b))
            if weight <= inner:
                join(a, b, weight)
    for weight, first, second in edges:
        a, b = owner[first], owner[second]
        if a != b and min(len(members[a]), len(members[b])) < smallest:
            join(a, b, weight)
    names: dict[tuple[int, int], int] = {}
    return np.array([[names.setdefault(owner[y, x], len(names)) for x in range(width)] for y in range(height)])


def group(regions: Regions, similarity: str) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Uijlings et al. (2013), algorithm 1: (pairs joined, boxes of all regions); histograms normalised and averaged."""
    size = regions.size.tolist()
    boxes = regions.boxes.tolist()
    colour = [row[:COLOURS] / row[:COLOURS].sum() for row in regions.histograms.astype(np.float64)]
    texture = [row[COLOURS:] / row[COLOURS:].sum() for row in regions.histograms.astype(np.float64)]

    def alike(i: int, j: int) -> float:
        around = union(i, j)
        area = (around[2] - around[0]) * (around[3] - around[1])
        parts = {
            "C": np.minimum(colour[i], colour[j]).sum(),
            "T": np.minimum(texture[i], texture[j]).sum(),
            "S": 1 - (size[i] + size[j]) / regions.pixels,
            "F": 1 - (area - size[i] - size[j]) / regions.pixels,
        }
        return sum(parts[letter] for letter in similarity)

    def union(i: int, j: int) -> list[int]:
        low = [min(a, b) for a, b in zip(boxes[i][:2], boxes[j][:2])]
        return low + [max(a, b) for a, b in zip(boxes[i][2:], boxes[j][2:])]

    similar = {(i, j): alike(i, j) for i, j in regions.neighbours.tolist()}
    joined = []
    while similar:
        i, j = min(similar, key=lambda pair: (-similar[pair], pair))
        joined.append((i, j))
        new = len(size)
        size.append(size[i] + size[j])
        boxes.append(union(i, j))
        for histogram in (colour, texture):
            histogram.append((size[i] * histogram[i] + size[j] * histogram[j]) / size[new])
        beside = {other for pair in similar if {i, j} & set(pair) for other in pair} - {i, j}
        similar = {pair: value for pair, value in similar.items() if not {i, j} & set(pair)}
        similar |= {(other, new): alike(other, new) for other in beside}
    return joined, boxes
