import math

import numpy as np
import pytest

from detkit.proposals.segmentation import gaussian, segment, smooth, sorted_edges
from tests.proposals import reference
from tests.proposals.sample_images import noise, sample_image

IMAGES = {
    "noise": noise(9, 13),
    "few levels": noise(12, 11, 1, levels=3),
    "image": sample_image(14, 17),
    "constant": np.full((6, 7, 3), 90, np.uint8),
    "row": noise(1, 30),
    "column": noise(30, 1),
    "pixel": noise(1, 1),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize(("k", "smallest"), [(0, 1), (30, 1), (300, 1), (100, 7), (1000, 20), (1e6, 1)])
def test_equals_the_paper(name: str, k: float, smallest: int) -> None:
    image = IMAGES[name]
    labels = segment(sorted_edges(image.astype(np.float32)), k, smallest)
    assert labels.dtype == np.int32
    assert labels.tolist() == reference.segment(image, k, smallest).tolist()


def test_edges_are_sorted_and_in_order() -> None:
    image = noise(20, 31, levels=4).astype(np.float32)
    edges = sorted_edges(image)
    pairs = list(reference.pixel_pairs(20, 31))
    weights = np.array([math.dist(image[a], image[b]) for a, b in pairs], np.float32)
    order = np.argsort(weights, kind="stable")
    assert np.array_equal(edges.weight, weights[order])
    codes = [4 * (a[0] * 31 + a[1]) + reference.AHEAD.index((b[1] - a[1], b[0] - a[0])) for a, b in pairs]
    assert np.array_equal(edges.code, np.array(codes)[order])


def test_small_regions_are_gone() -> None:
    image = sample_image(90, 120)
    for k in (20, 100):
        assert np.bincount(segment(sorted_edges(smooth(image)), k, k).ravel()).min() >= k


def test_smoothing() -> None:
    image = noise(12, 15)
    kernel = np.array([math.exp(-0.5 * (i / 0.8) ** 2) for i in range(-4, 5)])
    kernel /= kernel.sum()
    padded = np.pad(image.astype(np.float64), ((4, 4), (4, 4), (0, 0)), mode="edge")
    rows = sum(weight * padded[i : i + 12] for i, weight in enumerate(kernel))
    wanted = sum(weight * rows[:, i : i + 15] for i, weight in enumerate(kernel))
    assert np.abs(smooth(image) - wanted).max() < 1e-3
    assert np.allclose(gaussian(0.8), kernel, atol=1e-7)
