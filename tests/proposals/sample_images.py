"""Small images with regions in them."""

import numpy as np

from tests.builders import random_image


def sample_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (height, width, 3) uint8 with structure of every size."""
    return np.ascontiguousarray(random_image(height, width, seed)[0].permute(1, 2, 0).numpy())


def noise(height: int, width: int, seed: int = 0, levels: int = 256) -> np.ndarray:
    """Return (height, width, 3) uint8 of independent pixels, with few levels full of equal ones."""
    random = np.random.default_rng(seed)
    return (random.integers(0, levels, (height, width, 3)) * (255 // (levels - 1))).astype(np.uint8)
