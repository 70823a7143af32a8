"""What selective search knows of an image's regions: size, box, histograms of colour and texture, and neighbours.

(Uijlings et al., IJCV 2013, section 3.2.) Histograms hold whole numbers of pixels: a union's is the sum of its parts',
which is what averaging normalised ones by size comes to, without rounding.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit

from detkit.proposals.segmentation import gaussian

CHANNELS = 3
COLOUR_BINS = 25
COLOURS = CHANNELS * COLOUR_BINS
DIRECTIONS, TEXTURE_BINS = 8, 10
TEXTURES = CHANNELS * DIRECTIONS * TEXTURE_BINS
# As the authors' code has them (the paper says sigma 1): derivatives, of values from 0 to 1, are rounded to the nearest
# of TEXTURE_BINS strengths from 0 to STRONGEST; the few that are stronger (an edge from black to white has .5) join it.
SIGMA, STRONGEST = 0.8, 0.43


@dataclass(frozen=True)
class Regions:
    """R regions of an image of `pixels` pixels.

    size: (R,) int64 pixels. boxes: (R, 4) int32, continuous xyxy. histograms: (R, COLOURS + TEXTURES) int32 pixels.
    neighbours: (P, 2) int32, pairs of regions that touch, corners included, the lower number first, in order.
    """

    pixels: int
    size: np.ndarray
    boxes: np.ndarray
    histograms: np.ndarray
    neighbours: np.ndarray


def texture_codes(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W, 12) uint8: 10 * direction + bin of the Gaussian derivatives along four axes.

    Section 3.2 has eight directions a channel. Where the derivative in one is positive it is negative, and counts as
    0, in the opposite one; so one code for each of the four axes says all, with `describe` filling in the zeros.
    """
    plain = gaussian(SIGMA)
    steps = np.arange(len(plain)) - len(plain) // 2
    derivative = plain * steps / SIGMA**2
    along_x, along_y = (
        np.asarray(cv2.sepFilter2D(image, cv2.CV_32F, x, y, borderType=cv2.BORDER_REPLICATE))
        for x, y in ((derivative, plain), (plain, derivative))
    )
    return _texture_codes(along_x, along_y)


def describe(labels: np.ndarray, image: np.ndarray, textures: np.ndarray) -> Regions:
    """labels: (H, W) int32 from 0, none left out; image: (H, W, 3) uint8; textures: of `texture_codes`."""
    count = int(labels.max()) + 1
    size, boxes, histograms = _describe(labels, image, textures, count)
    pairs = np.unique(_contacts(labels, count))
    neighbours = np.stack([pairs // count, pairs % count], 1).astype(np.int32)
    return Regions(labels.size, size, boxes, histograms, neighbours)


@njit(cache=True, nogil=True)
def _texture_codes(along_x, along_y):
    height, width, channels = along_x.shape
    codes = np.empty((height, width, 4 * channels), np.uint8)
    scale = np.float32((TEXTURE_BINS - 1) / (255 * STRONGEST))
    diagonal = np.float32(math.sqrt(0.5))
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                dx, dy = along_x[y, x, c] * scale, along_y[y, x, c] * scale
                turned = ((dx + dy) * diagonal, (dy - dx) * diagonal)
                for axis, value in enumerate((dx, turned[0], dy, turned[1])):
                    direction = axis if value > 0 else axis + 4
                    strength = min(int(abs(value) + np.float32(0.5)), TEXTURE_BINS - 1)
                    codes[y, x, 4 * c + axis] = direction * TEXTURE_BINS + strength
    return codes


@njit(cache=True, nogil=True)
def _describe(labels, image, textures, count):
    height, width = labels.shape
    size = np.zeros(count, np.int64)
    boxes = np.zeros((count, 4), np.int32)
    boxes[:, 0], boxes[:, 1] = width, height
    histograms = np.zeros((count, COLOURS + TEXTURES), np.int32)
    for y in range(height):
        start = 0
        for x in range(width):
            r = labels[y, x]
            for c in range(CHANNELS):
                histograms[r, c * COLOUR_BINS + (image[y, x, c] * COLOUR_BINS >> 8)] += 1
                offset = COLOURS + c * DIRECTIONS * TEXTURE_BINS
                for axis in range(4):
                    histograms[r, offset + textures[y, x, 4 * c + axis]] += 1
            if x + 1 == width or labels[y, x + 1] != r:
                size[r] += x + 1 - start
                boxes[r, 0] = min(boxes[r, 0], start)
                boxes[r, 1] = min(boxes[r, 1], y)
                boxes[r, 2] = max(boxes[r, 2], x + 1)
                boxes[r, 3] = y + 1
                start = x + 1
    for r in range(count):
        for start in range(COLOURS, COLOURS + TEXTURES, TEXTURE_BINS):
            counted = 0
            for strength in range(1, TEXTURE_BINS):
                counted += histograms[r, start + strength]
            histograms[r, start] = size[r] - counted
    return size, boxes, histograms


@njit(cache=True, nogil=True)
def _contacts(labels, count):
    """Return low * count + high for each pair of different neighbours in the 8-connected grid, many times over."""
    height, width = labels.shape
    contacts = np.empty(4 * labels.size, np.int64)  # the most there can be; memory never written to costs nothing
    used = 0
    for y in range(height):
        for x in range(width):
            for direction in range(4):
                down = 1 if direction > 0 else 0
                right = 1 if direction == 0 else direction - 2
                if y + down < height and 0 <= x + right < width:
                    a, b = labels[y, x], labels[y + down, x + right]
                    if a != b:
                        contacts[used] = np.int64(min(a, b)) * count + max(a, b)
                        used += 1
    return contacts[:used]
