"""Graph-based segmentation (Felzenszwalb and Huttenlocher, IJCV 2004).

The graph's edges are the same for every k, so they are sorted once: `segment(sorted_edges(smooth(image)), ...)`.
Compiled by numba on the first call, a few seconds that its cache on disk saves from then on.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

SIGMA = 0.8
DIGIT = 11  # bits a pass of the radix sort


@dataclass(frozen=True)
class Edges:
    """The 8-connected grid graph of an image, lightest edge first.

    height, width: of the image. weight: (E,) float32. code: (E,) int64, 4 * pixel + direction, where direction says
    which neighbour of that pixel (row-major) is the other end: right, lower left, below, lower right.
    """

    height: int
    width: int
    weight: np.ndarray
    code: np.ndarray


def gaussian(sigma: float) -> np.ndarray:
    """Return a normalised float64 kernel of radius ceil(4 sigma)."""
    return np.asarray(cv2.getGaussianKernel(2 * math.ceil(4 * sigma) + 1, sigma)).ravel()


def smooth(image: np.ndarray, sigma: float = SIGMA) -> np.ndarray:
    """(H, W, 3) of any type -> float32, convolved with a Gaussian; pixels beyond the border equal those at it."""
    kernel = gaussian(sigma)
    return np.asarray(cv2.sepFilter2D(image, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REPLICATE))


def sorted_edges(image: np.ndarray) -> Edges:
    """Return the edges of (H, W, 3) float32, each weighing the Euclidean distance of its pixels' colours.

    Equal weights are in the order of `code`, so the segmentation is the same on every machine.
    """
    height, width = image.shape[:2]
    weight, code = _edges(image)
    return Edges(height, width, *_radix_sort(weight, code))


def segment(edges: Edges, k: float, min_size: int) -> np.ndarray:
    """Return (H, W) int32 labels 0, 1, ... in the order in which regions first appear, row by row.

    Two regions are joined over an edge no heavier than either's inner difference plus k / pixels (section 4.1); then,
    lightest edge first, any that has fewer than `min_size` pixels with its neighbour.
    """
    return _segment(edges.weight, edges.code, edges.height, edges.width, np.float32(k), min_size)


@njit(cache=True, nogil=True)
def _edges(image):
    height, width, _ = image.shape
    count = height * (width - 1) + (height - 1) * width + 2 * (height - 1) * (width - 1)
    weight = np.empty(count, np.float32)
    code = np.empty(count, np.int64)
    at = 0
    for y in range(height):
        for x in range(width):
            for direction in range(4):
                down = 1 if direction > 0 else 0
                right = 1 if direction == 0 else direction - 2
                if y + down < height and 0 <= x + right < width:
                    d0 = image[y, x, 0] - image[y + down, x + right, 0]
                    d1 = image[y, x, 1] - image[y + down, x + right, 1]
                    d2 = image[y, x, 2] - image[y + down, x + right, 2]
                    weight[at] = math.sqrt(d0 * d0 + d1 * d1 + d2 * d2)
                    code[at] = 4 * (y * width + x) + direction
                    at += 1
    return weight, code


@njit(cache=True, nogil=True)
def _radix_sort(weight, code):
    """Stable sort by weight, which is not negative: the bits of such floats order like integers."""
    keys = weight.view(np.uint32)
    other_keys, other_code = np.empty_like(keys), np.empty_like(code)
    starts = np.zeros(1 << DIGIT, np.int64)
    for shift in range(0, 32, DIGIT):
        starts[:] = 0
        for e in range(len(keys)):
            starts[(keys[e] >> shift) & ((1 << DIGIT) - 1)] += 1
        total = 0
        for digit in range(1 << DIGIT):
            total, starts[digit] = total + starts[digit], total
        for e in range(len(keys)):
            digit = (keys[e] >> shift) & ((1 << DIGIT) - 1)
            other_keys[starts[digit]] = keys[e]
            other_code[starts[digit]] = code[e]
            starts[digit] += 1
        keys, other_keys = other_keys, keys
        code, other_code = other_code, code
    return keys.view(np.float32), code


@njit(cache=True, nogil=True, inline="always")
def _root(parent, x):
    while parent[x] != x:
        parent[x] = parent[parent[x]]
        x = parent[x]
    return x


@njit(cache=True, nogil=True)
def _segment(weight, code, height, width, k, min_size):
    pixels = height * width
    step = np.array([1, width - 1, width, width + 1])
    parent = np.arange(pixels).astype(np.int32)
    size = np.ones(pixels, np.int32)
    limit = np.full(pixels, k, np.float32)  # inner difference + k / size
    between = np.empty(len(code), np.int64)  # edges that did not join their regions: all that the second pass needs
    left = 0
    for e in range(len(code)):
        pixel = code[e] >> 2
        a = _root(parent, pixel)
        b = _root(parent, pixel + step[code[e] & 3])
        if a == b:
            continue
        if weight[e] <= limit[a] and weight[e] <= limit[b]:
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
            limit[a] = weight[e] + k / np.float32(size[a])
        else:
            between[left] = code[e]
            left += 1
    for e in range(left):
        pixel = between[e] >> 2
        a = _root(parent, pixel)
        b = _root(parent, pixel + step[between[e] & 3])
        if a != b and (size[a] < min_size or size[b] < min_size):
            if size[a] < size[b]:
                a, b = b, a
            parent[b] = a
            size[a] += size[b]
    labels = np.empty((height, width), np.int32)
    name = np.full(pixels, -1, np.int32)
    regions = 0
    for y in range(height):
        for x in range(width):
            root = _root(parent, y * width + x)
            if name[root] < 0:
                name[root] = regions
                regions += 1
            labels[y, x] = name[root]
    return labels
