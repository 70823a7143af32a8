"""The sizes of images, read from their headers once and kept in a file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detkit.data.finding import Finder
from detkit.data.image_file import image_size
from detkit.data.index import fingerprint, load_arrays, save_arrays, texts

UNREAD = (-1, -1)  # the state of a file that is not there


def image_sizes(finder: Finder, key: str, paths: Sequence[str]) -> np.ndarray:
    """Return (F, 2) int64 width and height of upright images, 0 where one is missing or broken.

    key: tells several lists of a root apart. What is kept of an image is right while its modification time and its
    size in bytes are what they were.
    """
    root = Path(finder.root)
    states = np.array([finder.state(path) or UNREAD for path in paths], dtype=np.int64).reshape(-1, 2)
    digest = fingerprint("sizes")
    known = load_arrays(root, f"sizes {key}", digest) or {}
    if known and known["paths"].tolist() == [*paths] and np.array_equal(known["states"], states):
        return known["sizes"]
    of_state: dict[tuple[str, int, int], list[int]] = {}
    if known:
        for path, state, size in zip(known["paths"].tolist(), known["states"].tolist(), known["sizes"].tolist()):
            of_state[path, state[0], state[1]] = size
    sizes = np.zeros((len(paths), 2), dtype=np.int64)
    for row, (path, state) in enumerate(zip(paths, states.tolist())):
        if tuple(state) != UNREAD:
            sizes[row] = of_state.get((path, state[0], state[1])) or image_size(path) or (0, 0)
    save_arrays(root, f"sizes {key}", digest, {"paths": texts(paths), "states": states, "sizes": sizes})
    return sizes
