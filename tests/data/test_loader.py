"""The stream: exact whatever the workers, the resume point and the processes; and what leaves it on errors."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.config import DataConfig, TrainConfig
from detkit.data import loader
from detkit.data.voc import VOCDataset
from detkit.errors import UserError
from detkit.structures import InputSpec
from tests.data.roots import make_root, xml
from tests.data.streams import AUGMENT, assert_equal

SPEC = InputSpec((24, 32))


def stream(root: Path, start: int, stop: int, *, workers=0, rank=0, world=1, batch=4, seed=5, **data):
    dataset = VOCDataset([(root, "trainval")])
    recipe = TrainConfig(iterations=100, batch=batch, workers=workers, seed=seed)
    config = DataConfig(root=str(root), augment=AUGMENT, **data)
    return list(loader.train_loader(dataset, SPEC, config, recipe, start=start, stop=stop, rank=rank, world=world))


def test_shapes_and_types(small_root):
    (images, targets), *_ = stream(small_root, 0, 1)
    assert images.pixels.shape == (4, 3, 24, 32)
    assert images.pixels.dtype == torch.uint8
    assert images.pixels.is_contiguous(memory_format=torch.channels_last)
    assert images.sizes.tolist() == [[24, 32]] * 4
    assert images.original.tolist() == [[40, 60]] * 4
    assert targets.boxes.shape == (*targets.labels.shape, 4)


@pytest.mark.parametrize("options", [{"workers": 2}, {"cache": True}, {"workers": 2, "cache": True}])
def test_same_stream_for_any_workers_and_cache(small_root, options):
    assert_equal(stream(small_root, 0, 9), stream(small_root, 0, 9, **options))


@pytest.mark.parametrize("workers", [0, 2])
def test_same_stream_from_any_resume_point(small_root, workers):
    whole = stream(small_root, 0, 8)
    assert_equal(whole[3:], stream(small_root, 3, 8, workers=workers))
    assert stream(small_root, 8, 8, workers=workers) == []
    assert stream(small_root, 9, 8) == []


def test_processes_share_a_batch(small_root):
    whole = stream(small_root, 2, 6)
    halves = [stream(small_root, 2, 6, rank=rank, world=2) for rank in range(2)]
    for (images, targets), *parts in zip(whole, *halves):
        assert images.ids == tuple(name for part, _ in parts for name in part.ids)
        assert torch.equal(images.pixels, torch.cat([part.pixels for part, _ in parts]))
        labels = [row[row >= 0].tolist() for _, part in parts for row in part.labels]
        assert labels == [row[row >= 0].tolist() for row in targets.labels]
    with pytest.raises(UserError, match=r"train\.batch: 4 is not a multiple of the 3 processes"):
        stream(small_root, 0, 1, world=3)


def test_every_epoch_visits_every_image_once_in_another_order(small_root):
    ids = [name for images, _ in stream(small_root, 0, 9, batch=3) for name in images.ids]
    epochs = [ids[i : i + 9] for i in range(0, 27, 9)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    first, again = (stream(small_root, 0, 3, batch=9, seed=s)[0][0].ids for s in (1, 2))
    assert first != again


def test_augmentation_differs_from_epoch_to_epoch(small_root):
    batches = stream(small_root, 0, 4, batch=9)
    sample_images = {images.pixels[images.ids.index("000004")].numpy().tobytes() for images, _ in batches}
    assert len(sample_images) == 4


def test_order_is_a_fact(small_root):
    """Runs can only be resumed elsewhere if numpy keeps its promise of a stable stream."""
    assert loader.image_order(0, 0, 10).tolist() == np.random.default_rng((0, 0)).permutation(10).tolist()
    assert sorted(loader.image_order(3, 9, 50).tolist()) == list(range(50))


def test_difficult_objects_are_flagged_as_the_config_says(small_root):
    for difficult in (True, False):
        ignored = 0
        for images, targets in stream(small_root, 0, 12, batch=9, difficult=difficult):
            row = images.ids.index("000003")
            others = torch.arange(9) != row
            assert not targets.ignore[others].any()
            ignored += int(targets.ignore[row].sum())
        assert (ignored == 0) if difficult else (ignored >= 6)


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (2, 1), (0, 4)])
def test_testing_sees_every_image_once_in_order(small_root, workers, world):
    dataset = VOCDataset([(small_root, "trainval")])
    seen, objects, ignored = [], 0, 0
    for rank in range(world):
        for images, targets in loader.test_loader(dataset, SPEC, batch=4, workers=workers, rank=rank, world=world):
            seen += images.ids
            objects += int(targets.valid.sum())
            ignored += int(targets.ignore.sum())
    truth = dataset.truth()
    assert tuple(seen) == dataset.ids
    assert (objects, ignored) == (len(truth.labels), 1)


def test_test_loader_can_be_gone_through_again(small_root):
    batches = loader.test_loader(VOCDataset([(small_root, "trainval")]), SPEC, batch=4, workers=2)
    assert_equal(list(batches), list(batches))
    assert len(batches) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_image_ends_in_one_line(small_root, workers):
    (small_root / "JPEGImages" / "000006.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=re.escape("000006.jpg: corrupt or truncated image")) as caught:
        stream(small_root, 0, 3, workers=workers)
    assert "\n" not in str(caught.value)


def test_cache_holds_what_was_decoded(small_root):
    cache = loader.ImageCache(VOCDataset([(small_root, "trainval")]))
    first = cache.image(4).copy()
    (small_root / "JPEGImages" / "000004.jpg").unlink()
    np.testing.assert_array_equal(cache.image(4), first)
    assert cache.ready.sum() == 1


def test_cache_leaves_images_of_another_size_alone(tmp_path):
    """Whatever is stated, an image has room for its own size; one that comes late has none."""
    root = make_root(tmp_path / "d", {"a": xml([], size=None), "b": xml([], size=(61, 40))}, {"all": ["a", "b"]})
    late = (root / "JPEGImages" / "a.jpg").rename(tmp_path / "late.jpg")
    dataset = VOCDataset([(root, "all")])
    late.rename(root / "JPEGImages" / "a.jpg")
    cache = loader.ImageCache(dataset)
    for i in (0, 1, 0, 1):
        np.testing.assert_array_equal(cache.image(i), dataset.image(i))
    assert cache.ready.tolist() == [0, 1]


def test_cache_larger_than_the_memory_is_refused(small_root, monkeypatch):
    monkeypatch.setattr(loader.os, "sysconf", lambda _: 10)
    with pytest.raises(UserError, match=r"set data\.cache=false"):
        stream(small_root, 0, 1, cache=True)
