"""The drawn data set."""

import json
from dataclasses import replace

import numpy as np
import pytest

from detkit.config import DataConfig
from detkit.data import shapes
from detkit.data.opening import open_dataset
from detkit.data.voc import VOCDataset
from detkit.errors import UserError

FEW = {"train": 60, "val": 5, "test": 5}


def test_drawn_on_first_use_and_then_left(tmp_path):
    root = shapes.ensure_shapes(tmp_path / "shapes", FEW)
    random_image = root / "JPEGImages" / "train_00000.jpg"
    stamp = random_image.stat().st_mtime_ns
    assert shapes.ensure_shapes(root, FEW) == root
    assert random_image.stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["shapes"]
    for split, count in FEW.items():
        data = VOCDataset([(root, split)])
        assert len(data) == count
        assert data.image(0).shape == (data.record(0).height, data.record(0).width, 3)
    train = VOCDataset([(root, "train")])
    assert train.classes == shapes.CLASSES
    boxes = train.truth().boxes
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    assert sides.min() < 30
    assert sides.max() > 70


def test_drawing_says_how_far_it_is(tmp_path, capsys):
    shapes.draw_shapes(tmp_path / "shapes", FEW)
    assert "shapes drawn: 70/70 images" in capsys.readouterr().err


def test_same_seed_same_images_alone_or_in_parallel(tmp_path):
    shapes.draw_shapes(tmp_path / "a", FEW)
    shapes.draw_shapes(tmp_path / "b", {"train": 6})  # too few for several processes
    shapes.draw_shapes(tmp_path / "c", {"train": 6}, seed=1)
    for i in range(6):
        name = f"JPEGImages/train_{i:05d}.jpg"
        a, b, c = ((tmp_path / root / name).read_bytes() for root in "abc")
        assert a == b != c
        xml = f"Annotations/train_{i:05d}.xml"
        assert (tmp_path / "a" / xml).read_text() == (tmp_path / "b" / xml).read_text()


def test_splits_share_no_image():
    sample_images = [shapes.draw_image((0, split, i))[0].tobytes() for split in range(3) for i in range(4)]
    assert len(set(sample_images)) == 12


def test_objects_are_inside_flagged_and_varied():
    drawn = [shapes.draw_image((0, 0, i)) for i in range(300)]
    objects = [(item, image.shape) for image, items in drawn for item in items]
    for item, (height, width, _) in objects:
        left, top, right, bottom = item.box
        assert 0 <= left < right - 1 < width
        assert 0 <= top < bottom - 1 < height
        assert item.truncated or not item.difficult
    share = np.mean([item.difficult for item, _ in objects])
    assert 0.01 < share < 0.15
    counts = {name: sum(item.name == name for item, _ in objects) for name in shapes.CLASSES}
    assert min(counts.values()) > len(objects) / 10
    assert any(not items for _, items in drawn)


def test_hidden_parts_count_where_they_lie_outside_the_image():
    for name in shapes.CLASSES:
        alpha, area = shapes._shape(np.random.default_rng(3), name, np.array([70.0, 60.0]), 50.0, 128, 140)
        assert area == pytest.approx((alpha > 127).sum(), rel=0.15)
        alpha, area = shapes._shape(np.random.default_rng(3), name, np.array([0.0, 60.0]), 50.0, 128, 140)
        assert 0.3 < (alpha > 127).sum() / area < 0.7


def test_an_older_drawing_is_replaced_as_a_whole(tmp_path, monkeypatch):
    root = shapes.ensure_shapes(tmp_path / "shapes", {"train": 3})
    (root / "stray").write_text("")
    newer = replace(shapes.SHAPES, version=shapes.SHAPES.version + 1)
    monkeypatch.setattr(shapes, "SHAPES", newer)
    shapes.ensure_shapes(root, {"train": 2})
    assert not (root / "stray").exists()
    assert len(list((root / "JPEGImages").iterdir())) == 2
    assert json.loads((root / shapes.MANIFEST).read_text())["version"] == newer.version
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="left alone"):
        open_dataset(DataConfig(format="shapes", root=str(tmp_path), train=["train"]), "train")
    assert (tmp_path / "mine.txt").read_text() == "precious"
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="left alone"):
        shapes.ensure_shapes(tmp_path / "file")


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_write_image", fail)
    with pytest.raises(KeyboardInterrupt):
        shapes.draw_shapes(tmp_path / "shapes", {"train": 3})
    assert list(tmp_path.iterdir()) == []
