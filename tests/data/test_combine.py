"""Mosaic and mixup: where pixels and boxes of several images go, and that the stream stays exact."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.config import DataConfig, TrainConfig
from detkit.data import loader
from detkit.data.augment.combine import Combination, MixUp, Mosaic
from detkit.data.proposal_store import make_manifest, write_store
from detkit.data.transforms import build_train
from detkit.data.voc import VOCDataset
from detkit.structures import InputSpec
from tests.data.roots import make_root, xml
from tests.data.streams import assert_equal
from tests.data.test_transforms import found, noise

SPEC = InputSpec((90, 120), mean=(0.0, 0.0, 0.0))
NAMES = ["Mosaic", "MixUp"]
Box = tuple[float, float, float, float]


def samples(seed: int, count: int, proposals: int = 0) -> list[dict[str, Any]]:
    """Images of one colour each, with 6 objects and some proposals in fractions, numbered over all images."""
    draw = np.random.default_rng(seed)
    made = []
    for k in range(count):
        height, width = draw.integers(1 if seed % 7 == 0 else 30, 160, 2)
        boxes = np.sort(draw.random((6 + proposals, 2, 2)), 1).reshape(-1, 4)
        rows = np.arange(len(boxes)) + k * len(boxes)
        rows[6:] = -1 - rows[6:]
        image = np.full((height, width, 3), 0, np.uint8)
        image[..., k % 3] = 255 if k < 3 else 100
        made.append({"image": image, "bboxes": np.concatenate([boxes, rows[:, None]], 1)})
    return made


def recorded(step: Combination) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """A list that fills with (image's height and width, target's, crop) of each window of the step."""
    seen: list = []
    whole = step.window

    def window(sample: dict, size: tuple[int, int], zoom: float, random: np.random.Generator) -> tuple:
        # the same draws; that pixels are cut alike `test_boxes_follow_the_pixels` shows
        state = random.bit_generator.state
        height, width = sample["image"].shape[:2]
        scale = zoom * max(size[0] / height, size[1] / width)
        high, wide = (min(side, max(1, round(part / scale))) for side, part in zip((height, width), size))
        top, left = int(random.integers(height - high + 1)), int(random.integers(width - wide + 1))
        random.bit_generator.state = state
        seen.append(((height, width), tuple(size), (left, top, wide, high)))
        return whole(sample, size, zoom, random)

    step.window = window  # pyright: ignore[reportAttributeAccessIssue]
    return seen


def cut(box: Box, least: float, crop: tuple[int, ...], size: tuple[int, ...], at: tuple[float, float]) -> Box | None:
    """A box in pixels -> where it is in the result, in plain arithmetic; None where too little of it is left."""
    left, top, wide, high = crop
    sx, sy = size[1] / wide, size[0] / high
    x0, y0, x1, y1 = ((box[0] - left) * sx, (box[1] - top) * sy, (box[2] - left) * sx, (box[3] - top) * sy)
    u0, v0, u1, v1 = max(x0, 0.0), max(y0, 0.0), min(x1, size[1]), min(y1, size[0])
    if u1 <= u0 or v1 <= v0 or (u1 - u0) * (v1 - v0) < least * (x1 - x0) * (y1 - y0) - 1e-6:
        return None
    return u0 + at[0], v0 + at[1], u1 + at[0], v1 + at[1]


def in_pixels(sample: dict[str, Any]) -> dict[int, Box]:
    height, width = sample["image"].shape[:2]
    return {int(row[4]): tuple(row[:4] * (width, height, width, height)) for row in sample["bboxes"]}


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.25, 0.6, 1.0]), st.sampled_from([0, 5]))
@settings(max_examples=120, deadline=None)
def test_boxes_of_a_mosaic(seed: int, least: float, proposals: int) -> None:
    """The slow way: each box by itself, in its own quarter; and every quarter has the colour of its image."""
    step, parts = Mosaic(min_visible=least, zoom=(1, 3)), samples(seed, 4, proposals)
    seen = recorded(step)
    done = step(parts, np.random.default_rng(seed))
    height, width = parts[0]["image"].shape[:2]
    assert done["image"].shape == (height, width, 3)
    areas, expected = 0, {}
    shown = [part for part in parts if any(size == part["image"].shape[:2] for size, *_ in seen)]
    for (of, size, crop), part in zip(seen, shown):
        assert of == part["image"].shape[:2]
        areas += size[0] * size[1]
        colour = part["image"][0, 0]
        rows, columns = np.nonzero((done["image"] == colour).all(2))
        left, top = columns.min(), rows.min()
        assert (rows.max() + 1 - top, columns.max() + 1 - left) == size  # whole, and nothing of it elsewhere
        assert len(rows) == size[0] * size[1]
        for row, box in in_pixels(part).items():
            if moved := cut(box, least if row >= 0 else 0.0, crop, size, (left, top)):
                expected[row] = moved
    assert areas == height * width
    check(done, expected)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.25, 0.6, 1.0]), st.sampled_from([0, 5]))
@settings(max_examples=120, deadline=None)
def test_boxes_of_a_mixup(seed: int, least: float, proposals: int) -> None:
    """Those of the image at hand stay, those of the other are cut; pixels are the mean by some share."""
    step, (first, second) = MixUp(min_visible=least), samples(seed, 2, proposals)
    seen = recorded(step)
    done = step((first, second), np.random.default_rng(seed))
    ((_, size, crop),) = seen
    assert size == done["image"].shape[:2] == first["image"].shape[:2]
    red, green, _ = done["image"].reshape(-1, 3).astype(int).T
    assert (abs(red + green - 255) <= 1).all()
    assert 40 < red[0] < 215
    expected = in_pixels(first)
    for row, box in in_pixels(second).items():
        if moved := cut(box, least if row >= 0 else 0.0, crop, size, (0, 0)):
            expected[row] = moved
    check(done, expected)


@given(st.integers(0, 10**6), st.sampled_from(NAMES), st.sampled_from([[], ["HorizontalFlip"], ["Expand"]]))
@settings(max_examples=80, deadline=None)
def test_boxes_follow_the_pixels(seed: int, name: str, more: list) -> None:
    """Each image has an object of a colour of its own: where that is in the result, as far as it can be seen there."""
    draw = np.random.default_rng(seed)
    images = []
    for k in range(2 if name == "MixUp" else 3):
        height, width = draw.integers(60, 200, 2)
        low = draw.integers(0, (width - 40, height - 40))
        box = np.array([[*low, *(low + draw.integers(20, 40, 2))]], np.float32)
        x0, y0, x1, y1 = box[0].astype(int)
        image = np.zeros((height, width, 3), np.uint8)
        image[y0:y1, x0:x1, k] = 255
        images.append((image, box, 1))
    images.append((np.zeros((50, 50, 3), np.uint8), np.zeros((0, 4), np.float32), 0))
    others = iter(images[1:])
    transform = build_train([{name: {"p": 1, "min_visible": 0.0}}, *more], InputSpec((240, 320), mean=(0.0, 0.0, 0.0)))
    image, boxes, rows = transform(*images[0][:2], (seed, 1), 1, lambda _: next(others))
    if name == "MixUp":
        image = image * 1.6
    for box, row in zip(boxes, rows):
        blur = 0.5 * np.maximum((box[2:] - box[:2]) / 8, 1).max() + 3
        if (box[2:] - box[:2]).min() > 2 * blur:
            np.testing.assert_allclose(found(image, row), box, atol=blur)


def check(done: dict[str, Any], expected: dict[int, Box]) -> None:
    boxes = in_pixels(done)
    assert boxes.keys() == expected.keys()
    for row, box in boxes.items():
        np.testing.assert_allclose(box, expected[row], atol=1e-3)
    rows = done["bboxes"][:, 4]
    assert (np.diff((rows < 0).astype(int)) >= 0).all()  # objects first
    # of proposals the first of every image, then the second ones
    places = [(-1 - int(row)) % 11 for row in rows[rows < 0]]
    assert all(places.count(place) <= 4 for place in places)


def test_proposals_take_turns() -> None:
    """Or those of one image would fill all of `data.proposal_count`."""
    parts = samples(3, 2, 5)
    rows = MixUp(min_visible=0)(parts, np.random.default_rng(0))["bboxes"][:, 4]
    image = [(-1 - int(row)) // 11 for row in rows[rows < 0]]
    both = 2 * min(image.count(0), image.count(1))
    assert both >= 4
    assert image[:both] == [0, 1] * (both // 2)


def test_shares_of_a_mixup_follow_alpha() -> None:
    parts = samples(3, 2)
    shares = {
        alpha: [MixUp(alpha=alpha)(parts, np.random.default_rng(seed))["image"][0, 0, 0] / 255 for seed in range(200)]
        for alpha in (1.5, 32)
    }
    assert np.std(shares[32]) == pytest.approx(np.sqrt(1 / (4 * 65)), rel=0.15)
    assert np.std(shares[1.5]) == pytest.approx(0.25, rel=0.15)


def test_it_happens_with_its_probability() -> None:
    boxes = np.array([(5, 5, 50, 40)], np.float32)
    drawn = []

    def other(_: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        drawn.append(1)
        return noise(60, 80, 1), boxes, 1

    transform = build_train([{"MixUp": {"p": 0.3}}], SPEC)
    for seed in range(400):
        transform(noise(90, 120), boxes, (0, seed), None, other)
    assert len(drawn) / 400 == pytest.approx(0.3, abs=0.07)


def test_others_go_through_what_stands_before() -> None:
    """Each with draws of its own; what stands behind sees the mosaic."""
    boxes = np.array([(0, 0, 10, 10)], np.float32)
    dark = np.full((40, 40, 3), 10, np.uint8)
    before = [{"RandomBrightnessContrast": {"brightness_limit": [0.3, 0.9], "contrast_limit": [0, 0], "p": 1}}]
    mosaic = {"Mosaic": {"p": 1, "centre": [0.5, 0.5]}}
    image, *_ = build_train([*before, mosaic], InputSpec((40, 40)))(
        dark, boxes, (0, 1), None, lambda _: (dark, boxes, 1)
    )
    assert len({int(image[y, x, 0]) for y in (5, 35) for x in (5, 35)}) == 4
    image, *_ = build_train([mosaic, *before], InputSpec((40, 40)))(
        dark, boxes, (0, 1), None, lambda _: (dark, boxes, 1)
    )
    assert len(np.unique(image)) == 1
    assert image[0, 0, 0] > 10


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images of 60x40, each with an object of a class of its own and a difficult one of another."""
    ids = [str(k) for k in range(8)]
    objects = {name: xml([(f"c{name}", (5, 5, 30, 30)), (f"d{name}", (20, 10, 55, 38), 1, 0)]) for name in ids}
    return make_root(tmp_path_factory.mktemp("combine") / "set", objects, {"train": ids})


def stream(root: Path, augment: list, start: int = 0, stop: int = 6, workers: int = 0, **data: Any) -> list:
    dataset = VOCDataset([(root, "train")])
    recipe = TrainConfig(iterations=100, batch=4, workers=workers, seed=5)
    config = DataConfig(root=str(root), augment=augment, difficult=False, **data)
    return list(loader.train_loader(dataset, InputSpec((40, 60)), config, recipe, start=start, stop=stop))


BOTH = ["HorizontalFlip", {"Mosaic": {"p": 0.8}}, "Expand", {"MixUp": {"p": 0.8}}, "PhotometricDistort"]


@pytest.mark.parametrize("options", [{"workers": 2}, {"cache": True}])
def test_the_stream_is_exact(root: Path, options: dict[str, Any]) -> None:
    """Whatever the workers, the cache and the point that it goes on from."""
    whole = stream(root, BOTH)
    assert_equal(whole, stream(root, BOTH, **options))
    assert_equal(whole[2:], stream(root, BOTH, start=2, **options))
    assert not torch.equal(whole[0][0].pixels, whole[2][0].pixels)


@pytest.mark.parametrize("name", NAMES)
def test_labels_and_flags_come_with_their_boxes(root: Path, name: str) -> None:
    """Of other images, too; the image at hand, which the epoch is counted by, is always among them for mixup."""
    classes = VOCDataset([(root, "train")]).classes
    several = 0
    for images, targets in stream(root, [{name: {"p": 1, "min_visible": 0}}], stop=8):
        assert images.original.tolist() == [[40, 60]] * 4
        for number, labels, ignore in zip(images.ids, targets.labels.tolist(), targets.ignore.tolist()):
            names = [classes[label] for label in labels if label >= 0]
            assert [ignored for label, ignored in zip(labels, ignore) if label >= 0] == [one[0] == "d" for one in names]
            several += len({one[1:] for one in names}) > 1
            if name == "MixUp":
                assert names[:2] == [f"c{number}", f"d{number}"]
    assert several > 16


@pytest.mark.parametrize("name", NAMES)
def test_proposals_go_with_their_images(root: Path, tmp_path: Path, name: str) -> None:
    """The first two proposals of an image are its objects: wherever one stays, its proposal is the very same box."""
    dataset = VOCDataset([(root, "train")])
    boxes = [dataset.record(i).annotations.boxes for i in range(len(dataset))]
    manifest = make_manifest("none", {}, dataset.ids)
    scores = [np.array([i + 0.25, i + 0.5], np.float32) for i in range(len(dataset))]
    write_store(tmp_path / "a.npz", dataset.ids, boxes, scores, manifest=manifest)
    for augment in ([{name: {"p": 1, "min_visible": 0}}], [{name: {"p": 1, "min_visible": 0}}, "HorizontalFlip"]):
        for images, targets in stream(root, augment, proposals=[str(tmp_path / "a.npz")], stop=4):
            given = images.proposals
            assert given is not None
            assert given.scores is not None
            for row, (own, labels) in enumerate(zip(targets.boxes, targets.labels)):
                regions = [(float(score), box.tolist()) for score, box in zip(given.scores[row], given.boxes[row])]
                for box, label in zip(own[labels >= 0], labels[labels >= 0].tolist()):
                    kind, number = dataset.classes[label][0], int(dataset.classes[label][1:])
                    assert (number + (0.25 if kind == "c" else 0.5), box.tolist()) in regions
    assert_equal(stream(root, augment), stream(root, augment, proposals=[str(tmp_path / "a.npz")]))
