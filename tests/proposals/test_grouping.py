import colorsys
import math

import numpy as np
import pytest

from detkit.proposals import colours
from detkit.proposals.grouping import group
from detkit.proposals.regions import Regions, describe, texture_codes
from detkit.proposals.segmentation import segment, smooth, sorted_edges
from tests.proposals import reference
from tests.proposals.sample_images import noise, sample_image


def regions_of(image: np.ndarray, k: int) -> Regions:
    return describe(segment(sorted_edges(smooth(image)), k, k), image, texture_codes(image))


@pytest.mark.parametrize("similarity", ["CTSF", "TSF", "C", "T", "S", "F"])
@pytest.mark.parametrize("seed", range(4))
def test_merge_order_equals_the_paper(similarity: str, seed: int) -> None:
    image = sample_image(48, 60, seed)
    regions = regions_of(np.clip(image.astype(int) * 2 - 128, 0, 255).astype(np.uint8), 10)
    assert len(regions.size) > 20
    found = group(regions, similarity)
    merged, boxes = reference.group(regions, similarity)
    assert list(map(tuple, found.merged.tolist())) == merged
    assert found.boxes.tolist() == boxes
    assert found.boxes[-1].tolist() == [0, 0, 60, 48]


@pytest.mark.parametrize("similarity", ["CTSF", "S", "F"])
def test_many_neighbours(similarity: str) -> None:
    """A background around every region: each step changes nearly all similarities, and the queue overflows."""
    labels = np.zeros((45, 45), np.int32)
    for n in range(100):
        y, x = divmod(n, 10)
        labels[4 * y + 2 : 4 * y + 4 + n % 2, 4 * x + 2 : 4 * x + 4 + n % 3 // 2] = n + 1
    image = noise(45, 45)
    regions = describe(labels, image, texture_codes(image))
    merged, _ = reference.group(regions, similarity)
    assert list(map(tuple, group(regions, similarity).merged.tolist())) == merged


def test_equal_similarities_go_to_the_lowest_numbers() -> None:
    labels = np.arange(6, dtype=np.int32).repeat(4).reshape(1, -1)
    image = np.zeros((1, 24, 3), np.uint8)
    regions = describe(labels, image, texture_codes(image))
    assert group(regions, "CTSF").merged.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_grouping_leaves_the_regions_alone() -> None:
    regions = regions_of(sample_image(40, 50), 10)
    before = regions.histograms.copy()
    first = group(regions, "CTSF").merged
    assert np.array_equal(regions.histograms, before)
    assert np.array_equal(group(regions, "CTSF").merged, first)


def test_describe() -> None:
    image = noise(17, 23)
    labels = segment(sorted_edges(smooth(image, 2.0)), 40, 5)
    textures = texture_codes(image)
    regions = describe(labels, image, textures)
    assert len(regions.size) > 5
    assert regions.pixels == 17 * 23
    for r in range(labels.max() + 1):
        ys, xs = np.nonzero(labels == r)
        assert regions.size[r] == len(ys)
        assert regions.boxes[r].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        colour, texture = np.zeros((3, 25)), np.zeros((3, 8, 10))
        for y, x in zip(ys, xs):
            for c in range(3):
                colour[c, int(image[y, x, c] / 256 * 25)] += 1
                strength = np.zeros(8, int)
                for code in textures[y, x, 4 * c : 4 * c + 4].tolist():
                    strength[code // 10] = code % 10
                for direction in range(8):
                    texture[c, direction, strength[direction]] += 1
        assert regions.histograms[r].tolist() == [*colour.ravel(), *texture.ravel()]
    touching = {tuple(sorted((labels[a], labels[b]))) for a, b in reference.pixel_pairs(17, 23)}
    assert list(map(tuple, regions.neighbours.tolist())) == sorted(pair for pair in touching if pair[0] != pair[1])


def test_textures_are_gaussian_derivatives_in_eight_directions() -> None:
    image = np.where(noise(14, 16) > 90, 255, 0).astype(np.uint8)
    steps = np.arange(-4, 5)
    plain = np.exp(-0.5 * (steps / 0.8) ** 2)
    plain /= plain.sum()
    padded = np.pad(image.astype(np.float64) / 255, ((4, 4), (4, 4), (0, 0)), mode="edge")
    derivative = np.zeros((2, 14, 16, 3))
    for y in range(14):
        for x in range(16):
            window = padded[y : y + 9, x : x + 9]
            derivative[0, y, x] = np.einsum("yxc,y,x->c", window, plain, plain * steps / 0.64)
            derivative[1, y, x] = np.einsum("yxc,y,x->c", window, plain * steps / 0.64, plain)
    codes = texture_codes(image).reshape(14, 16, 3, 4)
    seen = np.zeros((14, 16, 3, 8), int)
    np.put_along_axis(seen, (codes // 10).astype(int), (codes % 10).astype(int), 3)
    assert seen.max() > 4
    for direction in range(8):
        angle = direction * math.pi / 4
        value = math.cos(angle) * derivative[0] + math.sin(angle) * derivative[1]
        exact = np.clip(value / 0.43 * 9, 0, 9)
        # float32 may put what lies at the border of two bins into the other
        inside = np.abs(exact % 1 - 0.5) > 1e-4
        assert np.array_equal(seen[..., direction][inside], np.round(exact[inside]).astype(int))


def test_colour_spaces() -> None:
    image = noise(8, 9)
    image[0, 0], image[0, 1], image[0, 2] = 0, 255, 128
    made = {name: convert(image).astype(float) for name, convert in colours.COLOURS.items()}
    assert list(made) == ["HSV", "Lab", "rgI", "H", "I"]
    for y in range(8):
        for x in range(9):
            r, g, b = (image[y, x] / 255).tolist()
            hsv = np.array(colorsys.rgb_to_hsv(r, g, b)) * 255
            apart = np.abs(made["HSV"][y, x] - hsv)
            assert min(apart[0], 256 - apart[0]) <= 2
            assert apart[1:].max() <= 1
            total = r + g + b
            chromatic = (r / total, g / total) if total else (1 / 3, 1 / 3)
            assert np.abs(made["rgI"][y, x] - np.array([*chromatic, total / 3]) * 255).max() <= 0.51
            assert np.abs(made["I"][y, x] - 255 * (0.299 * r + 0.587 * g + 0.114 * b)).max() <= 1
            assert np.abs(made["Lab"][y, x] - lab(r, g, b)).max() <= 1.5
            assert made["H"][y, x].tolist() == [made["HSV"][y, x, 0]] * 3
    assert all(convert(image).dtype == np.uint8 for convert in colours.COLOURS.values())


def lab(*rgb: float) -> np.ndarray:
    """CIE L*a*b* of sRGB under D65, in 8 bits."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb]
    rows = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
    x, y, z = (sum(a * b for a, b in zip(row, linear)) / sum(row) for row in rows)
    x, y, z = (value ** (1 / 3) if value > 216 / 24389 else value * 841 / 108 + 4 / 29 for value in (x, y, z))
    return np.array([(116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128])
