"""Masks of objects as COCO keeps them: run lengths down the columns, compressed, some hundred bytes each.

Such a mask is a mapping as pycocotools has it: {"size": [height, width], "counts": bytes}. In JSON, which knows no
bytes, the counts are a text of the same letters.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask

coco: Any = mask  # whose types ask for a TypedDict of its own

RLE = dict[str, Any]
MAX_SIDE = 1 << 16  # pixels; an area of more than this squared overflows in pycocotools
LETTERS = 7  # of a number of as many pixels


def encode(masks: np.ndarray) -> tuple[RLE, ...]:
    """Masks (N, H, W), where they are not 0, as RLEs."""
    # pycocotools reads (H, W, N) in Fortran's order, which is (N, W, H) in C's
    columns = np.ascontiguousarray(masks.transpose(0, 2, 1), dtype=np.uint8)
    return tuple(coco.encode(columns.transpose(2, 1, 0)))


def decode(masks: Sequence[RLE], size: tuple[int, int]) -> np.ndarray:
    """RLEs of an image of `size` (height, width) as (N, H, W) uint8, 0 or 1."""
    if not masks:
        return np.zeros((0, *size), np.uint8)
    return np.ascontiguousarray(coco.decode([*masks]).transpose(2, 0, 1))


def area(masks: Sequence[RLE]) -> np.ndarray:
    """(N,) float64, how many pixels each mask has."""
    # by itself each: with NumPy 2 pycocotools 2.0.11 counts the masks of a list in 8 bits
    return np.array([coco.area(mask) for mask in masks], np.float64)


def boxes(masks: Sequence[RLE]) -> np.ndarray:
    """(N, 4) float64 xyxy, the smallest boxes around masks."""
    found = np.asarray(coco.toBbox([*masks]), np.float64).reshape(-1, 4)
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)


def iou(masks: Sequence[RLE], others: Sequence[RLE], crowd: Sequence[bool]) -> np.ndarray:
    """(N, M) float64 IoU; with a crowd among the `others` the share of the mask that lies in it."""
    return np.asarray(coco.iou([*masks], [*others], [int(one) for one in crowd])).reshape(len(masks), len(others))


def to_json(mask: RLE) -> RLE:
    """Return a mask as JSON has it."""
    return {"size": [*mask["size"]], "counts": mask["counts"].decode("ascii")}


def parse(segmentation: Any, size: tuple[int, int] | None = None) -> RLE | str:
    """COCO's `segmentation`, polygons or run lengths, compressed or not, as an RLE; or what is wrong with it.

    size: (height, width) of the image, which run lengths must be of; None where they themselves are to say it.
    """
    if isinstance(segmentation, list) and size is not None:
        return _of_polygons(segmentation, size)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        return "is neither polygons nor run lengths, {size, counts}" if segmentation else "is missing"
    sides, counts = segmentation["size"], segmentation["counts"]
    if not _is_size(sides) or (size is not None and tuple(sides) != size):
        expected = "[height, width]" if size is None else f"{[*size]}, the image's height and width"
        return f"has the size {str(sides)[:40]}, not {expected}"
    if isinstance(counts, list):
        runs = all(type(run) is int and run >= 0 for run in counts)
        if not runs or sum(counts) != math.prod(sides):
            return f"has counts that are no run lengths of {math.prod(sides)} pixels together"
        return coco.frPyObjects({"size": sides, "counts": counts}, *sides)
    try:
        mask = {"size": [*sides], "counts": counts if isinstance(counts, bytes) else counts.encode("ascii")}
        runs = _runs(mask["counts"])
        if runs.min() >= 0 and runs.sum() == math.prod(sides):  # pycocotools would make pixels up
            return mask
    except (ValueError, AttributeError):
        pass
    return f"has counts that are no run lengths of {math.prod(sides)} pixels"


def _runs(counts: bytes) -> np.ndarray:
    """Compressed run lengths -> (n,) int64. Raises ValueError for what is none.

    A letter has five bits of a number, the lowest first, and a sixth that says whether more follow. From the fourth on
    a number is how much longer a run is than the one two before it.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    more = codes >= 32
    if not len(codes) or codes.min() < 0 or codes.max() >= 64 or more[-1]:
        raise ValueError("no letters of run lengths")
    first = np.flatnonzero(np.append(True, ~more[:-1]))
    letters = np.diff(first, append=len(codes))
    if letters.max() > LETTERS:
        raise ValueError("a run of too many pixels")
    runs = np.add.reduceat((codes & 31) << 5 * (np.arange(len(codes)) - np.repeat(first, letters)), first)
    runs -= (codes[first + letters - 1] & 16) << 5 * letters - 4  # the last letter has the sign
    for start in (1, 2):
        runs[start::2] = runs[start::2].cumsum()
    return runs


def _of_polygons(polygons: list[Any], size: tuple[int, int]) -> RLE | str:
    if not polygons:
        return "is empty"
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return f"has the polygon {str(polygon)[:40]}, not [x, y, x, y, x, y, ...]"
        if not all(_is_coordinate(value) for value in polygon):
            return f"has a polygon with other than finite numbers of pixels: {str(polygon)[:40]}"
    return coco.merge(coco.frPyObjects(polygons, *size))


def _is_size(sides: Any) -> bool:
    return (
        isinstance(sides, list | tuple) and len(sides) == 2 and all(type(s) is int and 0 < s < MAX_SIDE for s in sides)
    )


def _is_coordinate(value: Any) -> bool:
    # far outside, pycocotools' whole numbers overflow
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_SIDE
