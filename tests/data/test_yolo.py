"""The YOLO reader: where it finds things, what it reads, what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from detkit.data.check import check_root
from detkit.data.yolo import YOLODataset, yolo_splits
from detkit.data.yolo_index import label_name, parse_labels
from detkit.errors import UserError
from tests.data.roots import random_image
from tests.data.test_voc import rotated

YAML = "path: /somewhere/else\ntrain: images/train\nval: images/val\ntest:\nnc: 2\nnames: [cat, dog]\n"


def write(root: Path, rows: dict[str, str | None], yaml: str | None = YAML) -> Path:
    """Lay out images of 60x40; name below images -> rows, None for no label file."""
    for seed, (name, text) in enumerate(rows.items()):
        for folder in ("images", "labels"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        random_image(root / "images" / f"{name}.jpg", seed=seed)
        if text is not None:
            (root / "labels" / f"{name}.txt").write_text(text)
    if yaml is not None:
        (root / "data.yaml").write_text(yaml)
    return root


def read(root: Path, split="train", classes=None) -> YOLODataset:
    return YOLODataset([(root, split)], classes)


def refused(root: Path, text: str, split="train") -> None:
    with pytest.raises(UserError, match=re.escape(text)) as caught:
        read(root, split)
    assert "\n" not in str(caught.value)


def test_reads_rows(tmp_path):
    rows = {
        "train/é 1": "1 0.5 0.5 0.5 0.5\n\n0 .25 .25 .5 .5\r\n",
        "train/b": None,
        "train/c": "",
        "val/d": "0 0 0 1 1",
    }
    data = read(write(tmp_path, rows))
    assert (data.classes, data.ids) == (("cat", "dog"), ("b", "c", "é 1"))
    record = data.record(2)
    np.testing.assert_array_equal(record.annotations.boxes, [(15, 10, 45, 30), (0, 0, 30, 20)])
    assert record.annotations.labels.tolist() == [1, 0]
    assert record.annotations.area.tolist() == [600, 600]
    assert (record.width, record.height) == (60, 40)
    assert data.truth().image.tolist() == [2, 2]
    assert data.image(2).shape == (40, 60, 3)
    assert read(tmp_path, "val").record(0).annotations.boxes.tolist() == [[0, 0, 30, 20]]  # clipped


def test_polygons_become_boxes(tmp_path):
    data = read(write(tmp_path, {"train/a": "0 .1 .5 .5 .1 .9 .5 .5 .9"}))
    np.testing.assert_allclose(data.record(0).annotations.boxes, [(6, 4, 54, 36)], atol=1e-5)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("0 1.2 .5 .1 .1", "line 2: cx is 1.2; in parts of the image it lies between 0 and 1"),
        ("0 .5 .5 -.1 .1", "line 2: w is -.1; in parts"),
        ("0 30 20 10 10", "line 2: cx is 30; in parts"),
        ("0 .1 .5 .5 .1 .9 1.5", "line 2: y of point 3 is 1.5; in parts"),
        ("0 nan .5 .1 .1", "line 2: 'nan' is not a number"),
        ("cat .5 .5 .1 .1", "line 2: 'cat' is not a number"),
        ("0 .5 .5 .1", "line 2: 4 numbers, not the 5 of class cx cy w h"),
        ("0 .5 .5 .1 .1 .9", "line 2: 6 numbers, not the 5"),
        ("-1 .5 .5 .1 .1", "line 2: class '-1' is not a whole number from 0 on"),
        ("0.5 .5 .5 .1 .1", "line 2: class '0.5' is not a whole number"),
        ("2 .5 .5 .1 .1", "line 2: class 2 has no name; 2 classes have"),
    ],
)
def test_broken_rows_are_named(tmp_path, row, text):
    write(tmp_path, {"train/a": f"0 .5 .5 .1 .1\n{row}\n"})
    refused(tmp_path, f"{tmp_path}/labels/train/a.txt: {text}")
    assert any(str(p).startswith(f"labels/train/a.txt: {text}") for p in check_root(tmp_path, ["train"]).problems)


def test_classes(tmp_path):
    rows = {"train/a": "3 .5 .5 .1 .1", "val/b": "5 .5 .5 .1 .1"}
    root = write(tmp_path, rows, YAML.replace("[cat, dog]", "{3: bird, 5: cow}"))
    assert read(root).classes == ("bird", "cow")
    assert read(root, "val").record(0).annotations.labels.tolist() == [1]
    (root / "data.yaml").unlink()
    assert read(root).classes == ("0", "1", "2", "3", "4", "5")  # of all splits: training and testing agree
    (root / "classes.txt").write_text("a\nb\nc\nd\ne\nf\n")
    assert read(root).classes == tuple("abcdef")
    with pytest.raises(UserError, match=r"a\.txt: line 1: class 'd' is not in data\.classes"):
        read(root, classes=["x", "y"])


@pytest.mark.parametrize(
    ("yaml", "text"),
    [
        ("names: [", "data.yaml: not valid YAML"),
        ("- 1", "data.yaml: not a mapping"),
        ("names: 3", "data.yaml: names is neither a list"),
        ("names: {a: b}", "data.yaml: names is neither a list"),
        ("names: [a]\ntrain: images/trian", "data.yaml: train: there is no images/trian below"),
    ],
)
def test_broken_yaml_is_named(tmp_path, yaml, text):
    refused(write(tmp_path, {"train/a": ""}, yaml), text)


def test_layouts(tmp_path):
    root = write(tmp_path, {"train/a": "0 .5 .5 1 1", "val/b": ""}, None)
    assert yolo_splits(root) == ["train", "val"]
    refused(root, "no split 'tran'", "tran")
    refused(root, "did you mean 'train'?", "tran")
    lists = root / "lists.txt"
    lists.write_text(f"./images/val/b.jpg\nimages\\train\\a.jpg\n\n{root}/images/train/a.jpg\n")
    refused(root, "image images/train/a.jpg is listed twice", "lists")
    lists.write_text("./images/val/b.jpg\nimages/train/a.jpg\n")
    assert yolo_splits(root) == ["lists", "train", "val"]
    assert read(root, "lists").ids == read(root, "lists.txt").ids == ("b", "a")
    # Roboflow's folders
    other = tmp_path / "other"
    for folder in ("images", "labels"):
        (other / "train" / folder).mkdir(parents=True)
    random_image(other / "train" / "images" / "c.jpg")
    (other / "train" / "labels" / "c.txt").write_text("0 .5 .5 1 1")
    assert read(other).record(0).annotations.boxes.tolist() == [[0, 0, 60, 40]]
    (other / "data.yaml").write_text("train: ../train/images\nnames: [x]\n")
    assert read(other).classes == ("x",)
    assert yolo_splits(other) == ["train"]


def test_label_names():
    assert label_name("images/train/a.b.jpg") == "labels/train/a.b.txt"
    assert label_name("images/images/a.jpg") == "images/labels/a.txt"
    assert label_name("frames/a.jpg") == "frames/a.txt"
    assert label_name("train/images/a.jpg") == "train/labels/a.txt"


def test_no_label_file_at_all_is_a_mistake(tmp_path):
    refused(write(tmp_path, {"train/a": None}), "labels/train/a.txt: no image of train has a label file")
    (tmp_path / "images" / "val").mkdir()
    refused(tmp_path, "the split val is empty; images/val holds no image", "val")


def test_labels_without_a_image(tmp_path):
    write(tmp_path, {"train/a": "0 .5 .5 1 1"})
    (tmp_path / "labels" / "train" / "A.txt").write_text("0 .5 .5 1 1")
    (tmp_path / "labels" / "train" / "classes.txt").write_text("cat")
    (problem,) = check_root(tmp_path).problems
    assert str(problem) == "labels/train/A.txt: there is no image A in images/train"


def test_missing_and_broken_images(tmp_path):
    write(tmp_path, {"train/a": "0 .5 .5 1 1", "train/b": ""})
    (tmp_path / "images" / "train" / "a.jpg").write_text("text")
    refused(tmp_path, "labels/train/a.txt: its image is missing or broken")
    assert {p.kind for p in check_root(tmp_path).problems} == {"broken file", "unreadable image"}


def test_rows_are_of_the_upright_image(tmp_path):
    write(tmp_path, {"train/a": "0 .5 .25 1 .5"})
    rotated(tmp_path / "images" / "train" / "a.jpg", 6)
    data = read(tmp_path)
    assert data.sizes.tolist() == [[40, 60]]
    assert data.record(0).annotations.boxes.tolist() == [[0, 0, 40, 30]]
    image = data.image(0)
    assert image.shape == (60, 40, 3)
    assert image[:25].mean() < 60  # what the box is about


def test_flags(tmp_path):
    write(tmp_path, {"train/a": "0 .5 .5 1 1\n1 .5 .5 .5 .5\n"})
    path = tmp_path / "flags.json"
    entry = {"rows": 2, "difficult": [2], "crowd": [1], "truncated": [1, 2], "area": {"2": 7.5}}
    path.write_text(json.dumps({"labels/train/a.txt": entry}))
    record = read(tmp_path).record(0)
    assert record.annotations.difficult.tolist() == [False, True]
    assert record.annotations.crowd.tolist() == [True, False]
    assert record.annotations.truncated.tolist() == [True, True]
    assert record.annotations.area.tolist() == [2400, 7.5]
    assert record.annotations.ignore.tolist() == [True, True]
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 .5 .5 1 1\n")
    refused(tmp_path, "labels/train/a.txt: flags.json was written for 2 objects, here are 1")
    path.write_text("[1]")
    refused(tmp_path, "flags.json: not what detkit's converter writes")


def test_the_index_follows_labels_and_images(tmp_path):
    write(tmp_path, {"train/a": "0 .5 .5 1 1\n"})
    assert len(read(tmp_path).truth().area) == 1
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 .5 .5 1 1\n1 .5 .5 .5 .5\n")
    assert len(read(tmp_path).truth().area) == 2
    random_image(tmp_path / "images" / "train" / "a.jpg", (30, 40))
    assert read(tmp_path).record(0).annotations.boxes[0].tolist() == [0, 0, 30, 40]


def test_parsing_never_raises():
    rows, problems = parse_labels("0 .5 .5 1 1\x00\n\x0c\n1e400 1 1 1 1\n")
    assert not rows
    assert len(problems) == 2
