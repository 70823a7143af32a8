import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.data.voc import VOCDataset
from detkit.errors import UserError
from detkit.evaluation.recall import proposal_recall
from detkit.ops import box_iou
from detkit.proposals.colours import COLOURS
from detkit.proposals.grouping import group
from detkit.proposals.regions import describe, texture_codes
from detkit.proposals.segmentation import segment, smooth, sorted_edges
from detkit.proposals.selective_search import MODES, hierarchies, selective_search
from tests.proposals.sample_images import noise, sample_image
from tests.real_data import DATA, needs

IMAGES = DATA / "voc2012_sample"


def check(boxes: np.ndarray, height: int, width: int, smallest: int) -> None:
    assert boxes.dtype == np.float32
    assert boxes.shape == (len(boxes), 4)
    assert (boxes >= 0).all()
    assert (boxes <= (width, height, width, height)).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= smallest).all()
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    whole = [0, 0, width, height]
    assert (whole in boxes.tolist()) == (min(height, width) >= smallest)


@settings(max_examples=60)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["image", "noise", "constant", "halves"]),
    st.sampled_from(list(MODES)),
    st.integers(1, 30),
    st.integers(0, 3),
)
def test_properties(height: int, width: int, kind: str, mode: str, smallest: int, seed: int) -> None:
    image = {"image": sample_image, "noise": noise}.get(kind, lambda h, w: np.full((h, w, 3), 77, np.uint8))(
        height, width
    )
    if kind == "halves":
        image[:, width // 2 :] = 0
    boxes = selective_search(image, mode, seed, smallest)
    check(boxes, height, width, smallest)
    assert np.array_equal(selective_search(image, mode, seed, smallest), boxes)
    assert np.array_equal(selective_search(image, mode, seed, smallest, max_boxes=3), boxes[:3])


@pytest.mark.parametrize(("height", "width", "copy"), [(150, 120, (60, 48)), (33, 101, (20, 60)), (60, 20, (60, 20))])
def test_large_images_are_searched_in_a_copy(height: int, width: int, copy: tuple[int, int]) -> None:
    """Boxes are scaled back, each side by its own factor, and the smallest are measured in the copy."""
    image = sample_image(height, width)
    boxes = selective_search(image, "fast", seed=1, min_size=5, max_boxes=30, max_side=60)
    small = cv2.resize(image, copy[::-1], interpolation=cv2.INTER_AREA)
    expected = selective_search(small, "fast", seed=1, min_size=5, max_boxes=30)
    assert len(boxes) == len(expected) > 5
    np.testing.assert_allclose(boxes, expected * np.tile([width / copy[1], height / copy[0]], 2), rtol=1e-6)
    assert (boxes <= (width, height, width, height)).all()
    assert [0, 0, width, height] in boxes.tolist()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (3000, 1), (2, 900)])
def test_thin_images(height: int, width: int) -> None:
    check(selective_search(noise(height, width), "fast", min_size=1), height, width, 1)


@pytest.mark.parametrize("shape", [(0, 0, 3), (0, 5, 3), (5, 0, 3)])
def test_no_pixels(shape: tuple[int, ...]) -> None:
    assert selective_search(np.zeros(shape, np.uint8), min_size=1).shape == (0, 4)


def test_two_halves() -> None:
    image = np.full((60, 80, 3), 250, np.uint8)
    image[:, :30] = (10, 90, 10)
    boxes = torch.from_numpy(selective_search(image, "fast"))
    assert boxes.tolist().count([0, 0, 80, 60]) == 1
    # smoothing makes a thin region of the border between them
    halves = torch.tensor([[0.0, 0, 30, 60], [30, 0, 80, 60]])
    assert box_iou(halves, boxes).amax(1).min() > 0.9
    assert len(boxes) < 8


def test_modes_have_the_papers_strategies() -> None:
    assert {name: len(m.colours) * len(m.ks) * len(m.similarities) for name, m in MODES.items()} == {
        "single": 1,
        "fast": 8,
        "quality": 80,
    }
    assert MODES["single"].colours == ("HSV",)
    assert MODES["single"].ks == (100,)
    assert MODES["quality"].ks == (50, 100, 150, 300)


@pytest.mark.parametrize("mode", MODES)
def test_every_strategy_enters_with_its_places(mode: str) -> None:
    image = sample_image(80, 100)
    wanted = []
    for colour in MODES[mode].colours:
        converted = COLOURS[colour](image)
        for k in MODES[mode].ks:
            labels = segment(sorted_edges(smooth(converted)), k, k)
            regions = describe(labels, converted, texture_codes(converted))
            count = len(regions.size)
            wanted += [(*box, count) for box in regions.boxes.tolist()]
            for similarity in MODES[mode].similarities:
                unions = group(regions, similarity).boxes[count:].tolist()
                wanted += [(*box, place) for place, box in enumerate(reversed(unions), 1)]
    boxes, places = hierarchies(image, MODES[mode])
    assert sorted(wanted) == sorted((*box, place) for box, place in zip(boxes.tolist(), places.tolist()))


@pytest.mark.parametrize("seed", [0, 5])
def test_rank_is_a_random_number_times_the_place(seed: int) -> None:
    image = sample_image(90, 120)
    boxes, places = hierarchies(image, MODES["fast"])
    random = np.random.default_rng(seed).random(len(boxes))
    ranked = sorted(range(len(boxes)), key=lambda n: random[n] * places[n])
    wanted: list[list[float]] = []
    for n in ranked:
        x1, y1, x2, y2 = boxes[n].tolist()
        if x2 - x1 >= 20 and y2 - y1 >= 20 and [x1, y1, x2, y2] not in wanted:
            wanted.append([x1, y1, x2, y2])
    assert len(wanted) > 20
    assert selective_search(image, "fast", seed).tolist() == wanted


def test_seeds_differ_in_order_alone() -> None:
    image = sample_image(90, 120)
    first, second = (selective_search(image, "fast", seed) for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist())


def test_strided_images() -> None:
    image = sample_image(60, 80)
    flipped = image[:, ::-1]
    assert np.array_equal(selective_search(flipped), selective_search(np.ascontiguousarray(flipped)))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"mode": "fats"}, "'fats'; did you mean 'fast'"),
        ({"min_size": 0}, "min_size is 0, expected at least 1"),
        ({"max_boxes": 0}, "max_boxes is 0, expected at least 1"),
        ({"max_side": 0}, "max_side is 0, expected at least 1"),
    ],
)
def test_says_what_is_wrong(keys: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        selective_search(sample_image(40, 40), **keys)


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))])
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected \\(H, W, 3\\) uint8"):
        selective_search(image)


def test_importing_is_quick() -> None:
    code = "import sys, detkit.proposals; print([name for name in ('numba', 'torch', 'cv2') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@needs("voc2012_sample")
def test_images() -> None:
    """The objects of 12 real images are found about as well as the paper has it (table 3: .98 recall, .80 MABO)."""
    image_files = VOCDataset([(IMAGES, "all")])
    truth = image_files.truth()
    few = truth.image < 12
    columns = (truth.boxes[few], truth.labels[few], truth.ignore[few], truth.image[few])
    truth = type(truth)(*columns, truth.ids[:12], truth.classes)
    boxes = [selective_search(image_files.image(i), "fast") for i in range(12)]
    result = proposal_recall([torch.from_numpy(b) for b in boxes], truth, (300, None))
    assert 500 < result.boxes[1] < 4000
    assert result.recall[1, 0] >= 0.9
    assert result.mabo[1] >= 0.75
    assert result.mabo[0] >= 0.65
