"""The second drawn data set."""

import hashlib
import json

import numpy as np
import pytest
import torch

from detkit.config import DataConfig
from detkit.data import hard_shapes, shapes
from detkit.data.hard_shapes import CLASSES, HARD_SHAPES, PAIRS, draw_image
from detkit.data.opening import open_dataset
from detkit.errors import UserError
from detkit.ops import box_iou

FEW = {"train": 60, "val": 5, "test": 5}


@pytest.fixture(scope="module")
def drawn():
    return [draw_image((0, 0, i)) for i in range(200)]


def test_a_config_draws_it_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", FEW)
    data = DataConfig(format="hard_shapes", root=str(tmp_path / "hard"), train=["train"])
    dataset = open_dataset(data, "train")
    assert len(dataset) == FEW["train"]
    assert dataset.classes == CLASSES
    assert json.loads((tmp_path / "hard" / shapes.MANIFEST).read_text())["drawn by"] == "detkit hard_shapes"


@pytest.mark.parametrize(("first", "second"), [(shapes.SHAPES, HARD_SHAPES), (HARD_SHAPES, shapes.SHAPES)])
def test_one_set_does_not_replace_the_other(tmp_path, first, second):
    shapes.ensure_shapes(tmp_path / "a", {"train": 1}, drawing=first)
    with pytest.raises(UserError, match=r"is not a .*shapes data set and is left alone"):
        shapes.ensure_shapes(tmp_path / "a", {"train": 1}, drawing=second)
    assert (tmp_path / "a" / "JPEGImages" / "train_00000.jpg").is_file()


def test_the_seed_alone_decides():
    (image, objects), (again, same) = (draw_image((0, 0, 7)) for _ in range(2))
    assert (image == again).all()
    for one, other in zip(objects, same, strict=True):
        assert one._replace(mask=None) == other._replace(mask=None)
        assert (one.mask == other.mask).all()
    assert len({draw_image((0, split, i))[0].tobytes() for split in range(3) for i in range(4)}) == 12


def test_objects_are_the_same_on_every_machine(drawn):
    """What is drawn goes by whole numbers of pixels, which the last digits of a machine's sine do not change."""
    objects = [[(item.name, *item.box, item.difficult, item.truncated) for item in items] for _, items in drawn]
    assert hashlib.sha256(json.dumps(objects).encode()).hexdigest()[:16] == "d74431f61f64f8a3"


def test_small_crowded_long_and_of_all_classes(drawn):
    objects = [item for _, items in drawn for item in items]
    boxes = torch.tensor([item.box for item in objects]).float()
    sides = boxes[:, 2:] - boxes[:, :2]
    size, ratio = sides.prod(1).sqrt(), sides.amax(1) / sides.amin(1)
    assert 0.4 < (size < 30).float().mean() < 0.7
    assert size.max() > 100
    assert (ratio > 2).float().mean() > 0.1
    assert 0.05 < np.mean([item.difficult for item in objects]) < 0.2
    counts = {name: sum(item.name == name for item in objects) for name in CLASSES}
    assert min(counts.values()) > len(objects) / 16
    images = [torch.tensor([item.box for item in items]).float() for _, items in drawn if items]
    crowding = torch.cat([box_iou(boxes, boxes).fill_diagonal_(0).amax(1) for boxes in images]).numpy()
    assert 0.2 < (crowding == 0).mean() < 0.5
    assert 0.1 < (crowding >= 0.3).mean() < 0.25
    for image, items in drawn:
        for item in items:
            left, top, right, bottom = item.box
            assert 0 <= left < right <= image.shape[1]
            assert 0 <= top < bottom <= image.shape[0]


def test_pairs_cover_the_classes_and_differ():
    assert sorted(name for pair in PAIRS for name in pair.names) == list(CLASSES)
    for pair in PAIRS:
        one, other = (
            shapes.filled(hard_shapes._outlines(name), 0.0, 1.0, np.array([50.0, 50.0]), 60.0, (100, 100))[0] > 127
            for name in pair.names
        )
        differs = one != other
        assert differs.sum() > 0.1 * one.sum()
        if pair.part is not None:  # where it says they do
            part, area = shapes.filled(
                hard_shapes._part(pair.names[0]), 0.0, 1.0, np.array([50.0, 50.0]), 60.0, (100, 100)
            )
            assert (differs & (part > 127)).sum() > 0.3 * area


def test_an_object_is_difficult_where_what_tells_it_is_hidden(monkeypatch):
    """A block of which the upper middle is covered may be a notched one."""
    block, cover = ("block", np.array([80.0, 80.0]), 60.0), ("arrow_down", np.array([80.0, 60.0]), 40.0)
    for scene, difficult in (([block, cover], True), ([cover, block], False)):
        monkeypatch.setattr(hard_shapes, "_scene", lambda *_, scene=scene: scene)
        monkeypatch.setattr(hard_shapes, "MAX_TURN", 0.0)
        monkeypatch.setattr(hard_shapes, "MOST_STRETCH", 0.0)
        monkeypatch.setattr(hard_shapes, "distract", lambda random, image: np.zeros(image.shape[:2], bool))
        items = {item.name: item for item in draw_image((0, 0, 0))[1]}
        assert items["block"].difficult == difficult
