"""Proposals move with the image, and nothing else changes when they are there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.config import DataConfig, TrainConfig
from detkit.data import loader
from detkit.data.augment import chain
from detkit.data.proposal_store import make_manifest, write_store
from detkit.data.transforms import build_test, build_train
from detkit.data.voc import VOCDataset
from detkit.errors import UserError
from detkit.structures import InputSpec
from tests.data.streams import AUGMENT, assert_equal
from tests.data.test_transforms import NAMES, SSD, found, marked, noise, unfused

SPEC = InputSpec((90, 120), mean=(0.6, 0.4, 0.2))
OBJECTS = np.array([(5, 5, 50, 40), (20, 10, 70, 60), (90, 70, 99, 79)], np.float32)


def random_boxes(count: int, seed: int, width: float = 100, height: float = 80) -> np.ndarray:
    draw = np.random.default_rng(seed)
    corners = np.sort(draw.random((count, 2, 2)), 1) * (width, height) + ((0, 0), (0.5, 0.5))
    return np.minimum(corners.reshape(count, 4), (width, height, width, height)).astype(np.float32)


@pytest.mark.parametrize("build", [build_train, unfused])
@pytest.mark.parametrize(
    "parts", [SSD, SSD[1:3], SSD[:3], ["IoUCrop"], ["Expand", "HorizontalFlip"], ["VerticalFlip", "RandomRotate90"]]
)
def test_images_and_objects_are_the_same_with_and_without(build, parts):
    transform, image = build(parts, SPEC), noise(80, 100)
    for seed in range(60):
        proposals = np.concatenate([OBJECTS, random_boxes(50, seed)])
        without = transform(image, OBJECTS, (3, seed))
        both = transform(image, np.concatenate([OBJECTS, proposals]), (3, seed), 3)
        objects = both[2] < 3
        np.testing.assert_array_equal(both[0], without[0])
        np.testing.assert_array_equal(both[1][objects], without[1])
        np.testing.assert_array_equal(both[2][objects], without[2])
        assert (np.diff(both[2]) > 0).all()
        # the first three proposals are the objects: wherever an object stays its proposal is the very same box
        place = dict(zip(both[2].tolist(), both[1].tolist()))
        for row in without[2].tolist():
            assert place[row] == place[row + 3]


@given(
    st.integers(40, 200),
    st.integers(40, 200),
    st.integers(0, 2**32),
    st.permutations(["Expand", "IoUCrop", "RandomInterpolationResize", "HorizontalFlip"]),
)
@settings(max_examples=100)
def test_proposals_follow_the_pixels_until_none_are_left(height, width, seed, order):
    """A centre outside of the crop loses an object, but not a proposal."""
    draw = np.random.default_rng(seed)
    low = draw.integers(0, (width - 20, height - 20), (2, 2))
    size = draw.integers(8, np.minimum(20 + draw.integers(0, 100), (width, height) - low.max(0)) + 1, (2, 2))
    boxes = np.concatenate([low, np.minimum(low + size, (width, height))], 1).astype(np.float32)
    spec = InputSpec((240, 320), mean=(0.0, 0.0, 0.0))
    image, moved, rows = build_train(order, spec)(marked(boxes, height, width), boxes, (seed, 1), 0)
    for box, row in zip(moved, rows):
        blur = 0.5 * np.maximum((box[2:] - box[:2]) / 4, 1).max() + 4
        if (box[2:] - box[:2]).min() > 2 * blur:
            np.testing.assert_allclose(found(image, row), box, atol=blur)
    for row in {0, 1} - set(rows.tolist()):
        assert (image[..., row] > 127).mean() < 0.01


def test_the_crop_clips_proposals_and_drops_those_outside():
    crop = chain.IoUCrop
    boxes = np.array([(0, 0, 30, 30, 0), (0, 0, 30, 30, -2), (0, 0, 20, 40, -3), (60, 0, 90, 90, -4)], float)
    kept = chain._tidy(crop.keep(boxes, (20, 20, 60, 40)))
    assert kept[:, 4].tolist() == [-2]
    np.testing.assert_allclose(kept[:, :4] * (40, 20, 40, 20), [(0, 0, 10, 10)])


def test_a_proposal_stays_however_small_it_becomes():
    boxes = np.array([(1, 1, 1.4, 2), (1, 1, 1.4, 2), (-9, 1, 0, 9), (50, 5, 500, 9)], np.float32)
    _, moved, rows = build_test(SPEC)(noise(90, 120), boxes, objects=1)
    assert rows.tolist() == [1, 3]
    np.testing.assert_allclose(moved, [boxes[1], (50, 5, 120, 9)], atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_transform_that_is_accepted_looks_at_proposals():
    image, tried = noise(90, 120), 0
    proposals = random_boxes(30, 0, 120, 90)
    sized = {"height": 60, "width": 60}
    options = {
        **dict.fromkeys(("RandomCrop", "CenterCrop", "RandomSizedBBoxSafeCrop", "AtLeastOneBBoxRandomCrop"), sized),
        "RandomResizedCrop": {"size": [60, 60]},
        "CropAndPad": {"px": -9},
        "LongestMaxSize": {"max_size": 70},
    }
    for name in NAMES:
        try:
            transform = build_train([{name: {"p": 1.0, **options.get(name, {})}}], SPEC, proposals=True)
        except UserError:
            continue  # refused, or in want of parameters
        tried += 1
        for seed in range(3):
            empty = lambda _: (noise(60, 80, 1), OBJECTS[:0], 0)  # noqa: E731 (what mosaic and mixup take beside it)
            without = transform(image, OBJECTS, (0, seed), other=empty)
            both = transform(image, np.concatenate([OBJECTS, proposals]), (0, seed), 3, empty)
            objects = both[2] < 3
            np.testing.assert_array_equal(both[0], without[0], err_msg=name)
            np.testing.assert_array_equal(both[2][objects], without[2], err_msg=name)
            np.testing.assert_allclose(both[1][objects], without[1], atol=1e-4, err_msg=name)
    assert tried > 60


@pytest.mark.parametrize(
    ("items", "text"),
    [
        (["BBoxSafeRandomCrop"], "data.augment: BBoxSafeRandomCrop would take proposals for objects, so it cannot"),
        (["HorizontalFlip", "GridDistortion"], "data.augment: GridDistortion cannot move thousands of boxes, so it"),
        ([{"OneOf": {"transforms": ["HorizontalFlip", "ElasticTransform"]}}], "ElasticTransform cannot move thousands"),
        (["OverlayElements"], "OverlayElements moves pixels but not boxes"),
    ],
)
def test_refused_by_name(items, text):
    with pytest.raises(UserError, match=re.escape(text)):
        build_train(items, SPEC, proposals=True)
    if "moves pixels" not in text:
        build_train(items, SPEC)


# --- the loader


def store_of(root: Path, path: Path, scored: bool = False) -> dict[str, np.ndarray]:
    """Write a store of up to 40 boxes an image of small_root, whose best first box is all of the image."""
    ids = VOCDataset([(root, "trainval")]).ids
    counts = {name: 5 * i for i, name in enumerate(ids)}
    boxes = {name: random_boxes(counts[name], i, 60, 40) for i, name in enumerate(ids)}
    for own in boxes.values():
        own[:1] = (0, 0, 60, 40)
    scores = [np.arange(count, 0, -1, dtype=np.float32) for count in counts.values()] if scored else None
    write_store(path, ids, list(boxes.values()), scores, manifest=make_manifest("m", {}, ids))
    return boxes


def stream(root: Path, start: int, stop: int, workers: int = 0, augment=AUGMENT, **data):
    recipe = TrainConfig(iterations=100, batch=4, workers=workers, seed=5)
    config = DataConfig(root=str(root), augment=augment, **data)
    dataset = VOCDataset([(root, "trainval")])
    return list(loader.train_loader(dataset, InputSpec((24, 32)), config, recipe, start=start, stop=stop))


def test_the_stream_is_the_same_with_proposals(small_root, tmp_path):
    store_of(small_root, tmp_path / "a.npz")
    plain = stream(small_root, 0, 12)
    batches = stream(small_root, 0, 12, proposals=[str(tmp_path / "a.npz")])
    assert_equal(plain, batches)
    assert all(images.proposals is None for images, _ in plain)
    for images, _ in batches:
        proposals = images.proposals
        assert len(proposals) == len(images)
        assert proposals.scores is None
        assert proposals.valid.sum(1).max() == proposals.valid.shape[1]
        assert not proposals.boxes[~proposals.valid].any()
        inside = (proposals.boxes >= 0) & (proposals.boxes <= torch.tensor([32.0, 24, 32, 24]))
        assert inside.all()
    resumed = stream(small_root, 5, 12, workers=2, cache=True, proposals=[str(tmp_path / "a.npz")])
    assert_equal(batches[5:], resumed)
    for (one, _), (two, _) in zip(batches[5:], resumed):
        assert torch.equal(one.proposals.boxes, two.proposals.boxes)
        assert torch.equal(one.proposals.valid, two.proposals.valid)


@pytest.mark.parametrize("workers", [0, 2])
def test_testing_scales_them_with_the_image(small_root, tmp_path, workers):
    boxes = store_of(small_root, tmp_path / "a.npz", scored=True)
    dataset = VOCDataset([(small_root, "trainval")])
    stored = loader.open_proposals(dataset, DataConfig(root="x", proposals=[str(tmp_path / "a.npz")]))
    seen = 0
    batches = loader.test_loader(dataset, InputSpec((80, 60)), batch=4, workers=workers, proposals=stored)
    for images, _ in batches:
        proposals = images.proposals
        for name, own, valid, scores in zip(images.ids, proposals.boxes, proposals.valid, proposals.scores):
            count = len(boxes[name])
            assert valid.tolist() == [True] * count + [False] * (len(valid) - count)
            np.testing.assert_allclose(own[valid], boxes[name] * (1, 2, 1, 2), atol=1e-5)
            assert scores[valid].tolist() == list(range(count, 0, -1))
            assert not scores[~valid].any()
            seen += count
    assert seen == sum(map(len, boxes.values())) == 180


def test_the_best_so_many(small_root, tmp_path):
    boxes = store_of(small_root, tmp_path / "a.npz", scored=True)
    options = {"proposals": [str(tmp_path / "a.npz")], "proposal_count": 12}
    for images, _ in stream(small_root, 0, 3, augment=[], **options):
        proposals = images.proposals
        assert proposals.boxes.shape == (4, 12, 4)
        for name, own, valid, scores in zip(images.ids, proposals.boxes, proposals.valid, proposals.scores):
            kept = min(12, len(boxes[name]))
            assert valid.sum() == kept
            expected = boxes[name][:kept] * np.tile([32 / 60, 24 / 40], 2)
            np.testing.assert_allclose(own[valid], expected, atol=1e-5)
            assert scores[0] == len(boxes[name])


def test_refusals(small_root, tmp_path):
    ids = ("000000", "000001")
    write_store(tmp_path / "few.npz", ids, [np.zeros((0, 4))] * 2, manifest=make_manifest("m", {}, ids))
    with pytest.raises(UserError, match=r"few\.npz: no proposals of image 000002 of small/trainval \(7 of 9 are miss"):
        stream(small_root, 0, 1, proposals=[str(tmp_path / "few.npz")])
    with pytest.raises(UserError, match=r"no proposals none\.npz; make them with"):
        stream(small_root, 0, 1, proposals=["none.npz"])
    store_of(small_root, tmp_path / "a.npz")
    with pytest.raises(UserError, match="BBoxSafeRandomCrop would take proposals for objects"):
        stream(small_root, 0, 1, augment=["BBoxSafeRandomCrop"], proposals=[str(tmp_path / "a.npz")])
    with pytest.raises(UserError, match=r"data\.proposal_count: 0 is not in \[1, inf\)"):
        DataConfig(root="x", proposal_count=0)
