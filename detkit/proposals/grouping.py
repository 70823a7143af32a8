"""Hierarchical grouping (Uijlings et al., IJCV 2013, section 3.1, algorithm 1, with the similarities of 3.2)."""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
from numba import njit

from detkit.proposals.regions import CHANNELS, COLOURS, DIRECTIONS, Regions


@dataclass(frozen=True)
class Hierarchy:
    """R initial regions and the R - 1 unions that lead to the whole image: union m has number R + m.

    boxes: (2R - 1, 4) int32, continuous xyxy. merged: (R - 1, 2) int32, the two regions that each union joins, the
    lower number first.
    """

    boxes: np.ndarray
    merged: np.ndarray


def group(regions: Regions, similarity: str) -> Hierarchy:
    """Join the two most similar neighbours again and again; ties go to the lowest numbers, lower region first.

    similarity: those of its letters are added up: C colour, T texture (histogram intersections, equations 2 and 4),
    S size (5), F fill (6). Where letters are missing, their similarities are not computed.
    """
    copy = regions.histograms.copy()  # which is written to
    chosen = (letter in similarity for letter in "CTSF")
    return Hierarchy(*_group(regions.size, regions.boxes, copy, regions.neighbours, regions.pixels, *chosen))


@njit(cache=True, nogil=True)
def _intersection(a, b, size_a, size_b):
    """Sum of min(a / size_a, b / size_b), times both sizes: whole numbers, so that no order of adding changes it."""
    total = np.int64(0)
    for bin in range(len(a)):
        total += min(np.int64(a[bin]) * size_b, np.int64(b[bin]) * size_a)
    return total


@njit(cache=True, nogil=True)
def _similarity(i, j, sizes, boxes, slot, histograms, pixels, colour, texture, size, fill):
    both = float(sizes[i]) * float(sizes[j])
    a, b = histograms[slot[i]], histograms[slot[j]]
    total = 0.0
    if colour:
        total += _intersection(a[:COLOURS], b[:COLOURS], sizes[i], sizes[j]) / (both * CHANNELS)
    if texture:
        total += _intersection(a[COLOURS:], b[COLOURS:], sizes[i], sizes[j]) / (both * CHANNELS * DIRECTIONS)
    if size:
        total += 1 - (sizes[i] + sizes[j]) / pixels
    if fill:
        width = np.int64(max(boxes[i, 2], boxes[j, 2]) - min(boxes[i, 0], boxes[j, 0]))
        height = np.int64(max(boxes[i, 3], boxes[j, 3]) - min(boxes[i, 1], boxes[j, 1]))
        total += 1 - (width * height - sizes[i] - sizes[j]) / pixels
    return total


@njit(cache=True, nogil=True)
def _group(initial_sizes, initial_boxes, histograms, neighbours, pixels, colour, texture, size, fill):
    regions, pairs = len(initial_sizes), len(neighbours)
    sizes = np.zeros(2 * regions - 1, np.int64)
    boxes = np.zeros((2 * regions - 1, 4), np.int32)
    sizes[:regions], boxes[:regions] = initial_sizes, initial_boxes
    merged = np.empty((regions - 1, 2), np.int32)
    slot = np.arange(2 * regions - 1)  # row of a region's histogram; a union takes over that of its first part
    union = np.arange(2 * regions - 1)  # the union a region went into, itself while it is not part of any

    # neighbours of each region as a linked list of 2 * pairs nodes; names in it may be those of parts of a union
    target, following = np.empty(2 * pairs, np.int64), np.empty(2 * pairs, np.int64)
    head, tail = np.full(2 * regions - 1, -1), np.full(2 * regions - 1, -1)
    seen = np.full(2 * regions - 1, -1)
    for p in range(pairs):
        for end in range(2):
            node, region = 2 * p + end, neighbours[p, end]
            target[node], following[node] = neighbours[p, 1 - end], head[region]
            if head[region] < 0:
                tail[region] = node
            head[region] = node

    # The heap keeps pairs whose parts have been merged until they surface, or until it is full: joining regions never
    # adds pairs of neighbours, so at least half of a full heap is such leftovers.
    capacity = 2 * pairs
    heap = []  # (-similarity, lower, higher number), the most similar pair first
    for p in range(pairs):
        i, j = np.int64(neighbours[p, 0]), np.int64(neighbours[p, 1])
        value = _similarity(i, j, sizes, boxes, slot, histograms, pixels, colour, texture, size, fill)
        heap.append((-value, i, j))
    heapify(heap)

    made = regions
    while heap:
        _, i, j = heappop(heap)
        if union[i] != i or union[j] != j:
            continue
        merged[made - regions] = i, j
        union[i], union[j] = made, made
        sizes[made] = sizes[i] + sizes[j]
        for side in range(2):
            boxes[made, side] = min(boxes[i, side], boxes[j, side])
            boxes[made, 2 + side] = max(boxes[i, 2 + side], boxes[j, 2 + side])
        slot[made] = slot[i]
        histograms[slot[i]] += histograms[slot[j]]

        following[tail[i]] = head[j]
        node, seen[made] = head[i], made
        while node >= 0:
            after, other = following[node], target[node]
            while union[other] != other:
                union[other] = union[union[other]]
                other = union[other]
            if seen[other] != made:
                seen[other] = made
                target[node], following[node] = other, head[made]
                if head[made] < 0:
                    tail[made] = node
                head[made] = node
                if len(heap) == capacity:
                    heap = [item for item in heap if union[item[1]] == item[1] and union[item[2]] == item[2]]
                    heapify(heap)
                value = _similarity(other, made, sizes, boxes, slot, histograms, pixels, colour, texture, size, fill)
                heappush(heap, (-value, other, made))
            node = after
        made += 1
    return boxes, merged
