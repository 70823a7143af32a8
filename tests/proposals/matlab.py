"""Files as published for VOC, and what is in them."""

from pathlib import Path

import numpy as np
from scipy.io import savemat

# y1 x1 y2 x2, 1-based inclusive: the whole image, its first pixel, pixels 11..20 x 6..8
PUBLISHED = np.array([[1, 1, 40, 60], [1, 1, 1, 1], [6, 11, 8, 20]])


def mat(path: Path, boxes: list[np.ndarray], names: list[str] | None = None) -> Path:
    """A file like voc_2007_test.mat: `boxes` {1 x n}, `images` {n x 1}."""
    content = {"boxes": cells(boxes)}
    if names is not None:
        content["images"] = cells([np.array([name]) for name in names]).T
    savemat(path, content)
    return path


def cells(values: list) -> np.ndarray:
    """A MATLAB cell array."""
    array = np.empty((1, len(values)), dtype=object)
    array[0] = values
    return array
