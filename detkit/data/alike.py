"""Images that are copies of others, byte for byte or nearly: what must not stand in two splits."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from detkit.data.check import image_digest

SIDE = 16  # pixels of the small copy, of which each is compared with the one beside it: SIDE * SIDE bits
MOST = 24  # of these bits that may differ; of photographs that have nothing to do with each other 58 and more do
MIXED = np.random.default_rng(0).permutation(SIDE * SIDE)  # a plain sky is not a whole byte


def group_copies(paths: Sequence[str]) -> np.ndarray:
    """Return (F,) int64 from 0 on, the same for byte-identical files; only files of equal size are read."""
    size = {path: os.path.getsize(path) for path in paths if os.path.isfile(path)}
    counts = Counter(size.values())
    number_of: dict[str, int] = {}
    digests = [image_digest(path) if path in size and counts[size[path]] > 1 else path for path in paths]
    return np.array([number_of.setdefault(digest, len(number_of)) for digest in digests], dtype=np.int64)


def group_alike(paths: Sequence[str]) -> np.ndarray:
    """Return (F,) int64 from 0 on, the same for images that are nearly the same: saved or scaled once more, frames of a
    video in which little moves. Whatever is like an image of a group is in the group.

    Two are alike where of the signs of 16 x 16 horizontal differences of brightness at most MOST are not the same (a
    difference hash).
    """
    groups = group_copies(paths)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        signs = [*pool.map(_signs, paths)]
    for one, other in _alike(signs):
        if groups[one] != groups[other]:
            groups[groups == groups[other]] = groups[one]
    return np.unique(groups, return_inverse=True)[1].astype(np.int64)


def _signs(path: str) -> np.ndarray | None:
    """The bits (SIDE * SIDE / 8,) uint8 of an image, None where there is none, or nothing to see in it."""
    try:  # by its bytes: OpenCV ends the process at a path that is no UTF-8
        content = np.fromfile(path, np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_REDUCED_GRAYSCALE_4)
    except (OSError, cv2.error):
        return None
    if image is None:
        return None
    small = cv2.resize(image, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = np.diff(small, axis=1).ravel() > 0
    return np.packbits(bits[MIXED]) if bits.any() else None


def _alike(signs: Sequence[np.ndarray | None]) -> Iterator[tuple[int, int]]:
    """Yield pairs of images that are alike, some of them often.

    Of the bytes at least one is the same where fewer bits than there are bytes differ: only such pairs are compared.
    """
    rows = np.array([row for row, bits in enumerate(signs) if bits is not None])
    if not len(rows):
        return
    bits = np.stack([one for one in signs if one is not None])
    for key in bits.T:
        order = np.argsort(key, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(key[order].astype(int))) + 1):
            while len(members) > 1:
                first, members = members[0], members[1:]
                near = np.unpackbits(np.bitwise_xor(bits[members], bits[first]), axis=1).sum(1) <= MOST
                for other in members[near].tolist():
                    yield int(rows[first]), int(rows[other])
