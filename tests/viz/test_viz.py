"""Images: what is drawn where, at any size, and that nothing else changes."""

import math

import numpy as np
import pytest
import torch

from detkit import viz
from detkit.viz import sheet

GREY = 120
CLASSES = [f"class {k}" for k in range(200)]


def blank(height: int = 200, width: int = 300) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def changed(sample_image: np.ndarray) -> np.ndarray:
    return (sample_image != GREY).any(2)


def coloured(sample_image: np.ndarray, index: int) -> np.ndarray:
    return (sample_image == viz.colour(index)).all(2)


def test_colours_are_distinct_and_stable():
    shades = [viz.colour(k) for k in range(200)]
    assert len(set(shades)) == 200
    assert shades[0] == (230, 57, 70)
    assert all(0 <= channel <= 255 for shade in shades for channel in shade)


def test_the_outline_lies_on_the_box_and_its_name_above():
    image = blank()
    sample_image = viz.draw(image, [[100, 80, 180, 160]], [3], CLASSES)
    assert changed(image).sum() == 0
    assert (sample_image.shape, sample_image.dtype) == (image.shape, np.uint8)
    assert sample_image.flags.writeable
    drawn = coloured(sample_image, 3)
    rows, columns = np.nonzero(drawn)
    # pixels 100 to 179 and 80 to 159 are inside [100, 180) x [80, 160)
    assert (columns.min(), rows.max()) == (100, 159)
    assert drawn[159, 100:180].all()
    assert drawn[80:160, 179].all()
    assert not changed(sample_image)[85:155, 105:175].any()
    assert drawn[68:80, 100].all()
    assert not changed(sample_image)[:60].any()
    assert not changed(sample_image)[:, :100].any()


def test_scores_labels_and_padding():
    assert not changed(viz.draw(blank(), [], [], CLASSES)).any()
    assert not changed(viz.draw(blank(), [[1, 1, 50, 50]], [-1], CLASSES, scores=[0.0])).any()
    one = viz.draw(blank(), [[10, 80, 60, 160]], [3], CLASSES)
    two = viz.draw(blank(), [[10, 80, 60, 160]], [3], CLASSES, scores=[0.5])
    # the score makes the name longer
    assert coloured(two, 3).any(0).sum() > coloured(one, 3).any(0).sum() + 10


def test_tensors_arrays_and_lists_draw_the_same():
    boxes, labels, scores, ignore = [[10, 40, 60, 90], [70, 50, 200, 190]], [1, 2], [0.2, 0.9], [True, False]
    first = viz.draw(blank(), boxes, labels, CLASSES, scores, ignore)
    tensors = (torch.tensor(boxes).float(), torch.tensor(labels), CLASSES, torch.tensor(scores), torch.tensor(ignore))
    np.testing.assert_array_equal(viz.draw(torch.from_numpy(blank()), *tensors), first)


def test_ignored_boxes_are_dashed():
    whole = coloured(viz.draw(blank(), [[20, 50, 280, 180]], [1], CLASSES), 1)[179, 20:280]
    dashed = coloured(viz.draw(blank(), [[20, 50, 280, 180]], [1], CLASSES, ignore=[True]), 1)[179, 20:280]
    assert whole.all()
    assert 0.3 < dashed.mean() < 0.7


def test_the_best_score_is_on_top():
    boxes = [[20, 60, 120, 160]] * 2
    for scores, top in (([0.9, 0.1], 1), ([0.1, 0.9], 2)):
        assert coloured(viz.draw(blank(), boxes, [1, 2], CLASSES, scores), top)[159, 20:120].all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 400), (24, 32), (64, 64), (1200, 1600)])
def test_any_size(height: int, width: int):
    far = [-1e6, -50, 1e6, 1e6]
    boxes = [[0, 0, width, height], far, [width + 9, 9, width + 20, 20], [5, 5, 5, 5], [2, 2, 1, 1], [math.nan] * 4]
    sample_image = viz.draw(blank(height, width), boxes, range(6), CLASSES, scores=[0.5] * 6, ignore=[0, 1, 0, 1, 0, 1])
    assert sample_image.shape == (height, width, 3)
    assert changed(sample_image).any()


def test_letters_grow_with_the_picture():
    heights = []
    for size in (200, 1000, 3000):
        sample_image = viz.draw(blank(size, size), [[10, size // 2, size - 10, size - 10]], [1], CLASSES)
        heights.append(coloured(sample_image, 1)[: size // 2, 11].sum())
    assert heights[0] >= 12
    assert heights[1] > 1.5 * heights[0]
    assert heights[2] > 2.5 * heights[1]


def test_names_do_not_cover_each_other():
    boxes = [[100, 80, 200, 150], [101, 80, 201, 150], [100, 82, 200, 150]]
    sample_image = viz.draw(blank(), boxes, [4, 12, 19], CLASSES)
    for label in (4, 12, 19):  # each name's background is there, less its letters
        assert coloured(sample_image, label)[np.r_[62:80, 150:170]].sum() > 300


def test_mosaic():
    small, wide = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 80, 3), np.uint8)
    assert viz.mosaic([wide]).shape == (28, 88, 3)
    sheet = viz.mosaic([wide, small, wide], columns=2)
    assert sheet.shape == (2 * 20 + 3 * 4, 2 * 80 + 3 * 4, 3)
    assert sheet.flags.writeable
    assert (sheet[4:24, 4:84] == 0).all()
    # the second image keeps its shape, in the middle of its cell
    assert (sheet[4:24, 118:138] == 0).all()
    assert (sheet[4:24, 90:116] == 255).all()
    assert viz.mosaic([small] * 5).shape == (2 * 20 + 3 * 4, 3 * 20 + 4 * 4, 3)
    titled = viz.mosaic([wide, wide], ["a title that is far too long for its cell", "b"])
    assert titled.shape[0] > 28
    assert (titled[:, 85:87] == 255).all()
    with pytest.raises(ValueError, match="at least one image"):
        viz.mosaic([])


def test_pair_is_enlarged_and_side_by_side():
    truth = {"boxes": [[5, 10, 25, 30]], "labels": [0], "ignore": [False]}
    found = {"boxes": torch.tensor([[5.0, 10, 25, 30]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    sample_image = viz.draw_pair(blank(40, 40), truth, found, CLASSES)
    assert sample_image.shape[1] > 2 * sheet.READABLE
    middle = sample_image.shape[1] // 2
    assert coloured(sample_image, 0)[:, :middle].any()
    assert not coloured(sample_image, 0)[:, middle:].any()
    assert coloured(sample_image, 1)[:, middle:].any()
    assert viz.draw_pair(blank(40, 40), {"boxes": [], "labels": []}, {"boxes": [], "labels": []}, CLASSES).any()
