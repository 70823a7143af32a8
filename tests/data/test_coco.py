"""The COCO reader: where it finds things, what it reads, what it refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from detkit.data import coco, index
from detkit.data.check import check_root
from detkit.data.coco import COCODataset
from detkit.errors import UserError
from tests.data.roots import random_image

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]


def annotation(key=1, image=7, category=18, bbox=(1, 2, 30, 20), **more):
    return {"id": key, "image_id": image, "category_id": category, "bbox": list(bbox), **more}


def write(root: Path, annotations: list, images: list | None = None, name="annotations/instances_train.json", **more):
    images = images if images is not None else [{"id": 7, "file_name": "a b é.jpg", "width": 60, "height": 40}]
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES, **more}))
    return root


def read(root: Path, split="train", classes=None) -> COCODataset:
    return COCODataset([(root, split)], classes)


def refused(root: Path, text: str, split="train") -> None:
    with pytest.raises(UserError, match=re.escape(text)) as caught:
        read(root, split)
    assert "\n" not in str(caught.value)


def test_reads_boxes_flags_areas_and_ids(tmp_path):
    objects = [
        annotation(5, bbox=(1.5, 2, 30.25, 20), area=99.5),
        annotation(6, category=90, iscrowd=1, truncated=1),
        annotation(7, category=1, difficult=1),
        annotation(8, category=1, ignore=1),
        annotation(9, bbox=(3, 3, 0, 5)),  # has no area: left out
    ]
    data = read(write(tmp_path, objects))
    record = data.record(0)
    assert data.classes == ("person", "dog", "toothbrush")
    assert data.category_ids == (1, 18, 90)
    assert (data.ids, data.image_ids) == (("a b é",), (7,))
    np.testing.assert_array_equal(record.annotations.boxes[0], (1.5, 2, 31.75, 22))
    assert record.annotations.labels.tolist() == [1, 2, 0, 0]
    assert record.annotations.crowd.tolist() == [False, True, False, False]
    assert record.annotations.difficult.tolist() == [False, False, True, True]
    assert record.annotations.truncated.tolist() == [False, True, False, False]
    assert record.annotations.area.tolist() == [99.5, 600, 600, 600]  # of the box where the file says nothing
    assert data.truth().ignore.tolist() == [False, True, True, True]
    assert read(tmp_path, classes=["dog", "cat", "person", "toothbrush"]).category_ids == (18, None, 1, 90)


@pytest.mark.parametrize("place", ["train", "images", "images/train", ".", "annotations", "elsewhere"])
def test_images_are_found(tmp_path, place):
    write(tmp_path, [annotation()])
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    random_image(tmp_path / place / "a b é.jpg")
    assert read(tmp_path).image(0).shape == (40, 60, 3)


def test_images_in_folders_and_by_bare_name(tmp_path):
    names = ["x/1.jpg", "y\\1.jpg", "gone/2.jpg"]
    write(tmp_path, [], [{"id": i, "file_name": name} for i, name in enumerate(names)])
    for name in ("x/1.jpg", "y/1.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        random_image(tmp_path / "images" / name)
    data = read(tmp_path)
    assert data.ids == ("x/1", "y/1", "gone/2")
    assert data.image(1).shape == (40, 60, 3)
    with pytest.raises(UserError, match=r"no image .*gone/2\.jpg"):
        data.image(2)
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "train").mkdir()
    random_image(tmp_path / "train" / "1.jpg")
    with pytest.raises(UserError, match=r"image train/1\.jpg is listed twice"):
        read(tmp_path)
    write(tmp_path, [], [{"id": i, "file_name": name} for i, name in enumerate(names[1:])])
    assert read(tmp_path).image(0).shape == (40, 60, 3)


def test_names_of_splits(tmp_path):
    write(tmp_path, [])
    write(tmp_path, [], name="annotations/captions_train.json")
    assert coco.coco_splits(tmp_path) == ["train"]
    write(tmp_path, [], name="mine/objects.json")
    assert len(read(tmp_path, "mine/objects.json")) == 1
    refused(tmp_path, "no split 'trian'", "trian")
    refused(tmp_path, "did you mean 'train'?", "trian")
    refused(tmp_path, "no file", "annotations/x.json")
    write(tmp_path / "r", [], name="valid/_annotations.coco.json")
    random_image(tmp_path / "r" / "valid" / "a b é.jpg")
    assert read(tmp_path / "r", "valid").image(0).shape == (40, 60, 3)


def test_one_name_in_two_splits(tmp_path):
    for split in ("train", "val"):
        write(tmp_path, [annotation()], name=f"annotations/instances_{split}.json")
        (tmp_path / split).mkdir()
        random_image(tmp_path / split / "a b é.jpg")
    assert COCODataset([(tmp_path, "train"), (tmp_path, "val")]).ids == ("train/a b é", "val/a b é")
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / split)
    (tmp_path / "images").mkdir()
    random_image(tmp_path / "images" / "a b é.jpg")
    with pytest.raises(UserError, match="image a b é is listed twice"):
        COCODataset([(tmp_path, "train"), (tmp_path, "val")])


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (annotation(5, category=2), "image a b é.jpg: annotation 5: category_id 2 is not among the categories"),
        (annotation(5, image=8), "instances_train.json: annotation 5: image_id 8 is not among the images"),
        (annotation(5, image="7"), 'annotation 5: image_id "7" is not among the images'),
        (annotation(5, bbox=(1, 2, float("nan"), 4)), "annotation 5: dog: bbox is [1, 2, NaN, 4], not"),
        (annotation(5, bbox=(1, 2, 3)), "annotation 5: dog: bbox is [1, 2, 3], not [left, top, width, height]"),
        (annotation(5, bbox="none"), "annotation 5: dog: bbox is"),
        (annotation(5, bbox=(1, 2, -3, 4)), "annotation 5: dog: bbox is -3 wide and 4 high"),
        (annotation(5, bbox=(61, 2, 3, 4)), "annotation 5: the box of this dog lies outside the image"),
        (annotation(5, bbox=(-0.4, 2, 0.3, 4)), "annotation 5: the box of this dog lies outside the image"),
        (annotation(1), "annotation 1: its id is there twice"),
    ],
)
def test_broken_annotations_are_named(tmp_path, bad, text):
    refused(write(tmp_path, [annotation(1), bad]), text)
    problems = check_root(tmp_path).problems
    assert any(problem.object == bad["id"] or f"annotation {bad['id']}" in problem.text for problem in problems)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "not valid JSON"),
        ("[]", "it has no list of images, annotations, categories"),
        ('{"images": [], "annotations": 1, "categories": []}', "it has no list of annotations"),
        ('{"images": [1], "annotations": [], "categories": []}', "images, item 1: 1 is not a mapping"),
        ('{"images": [], "annotations": [], "categories": []}', "the split train is empty"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "image 1 has no file_name"),
        ('{"images": [{"file_name": "a"}], "annotations": [], "categories": []}', "image id null: ids are all whole"),
        ('{"images": [{"id": 1}, {"id": "1"}], "annotations": [], "categories": []}', 'image id "1": ids are all'),
        (
            '{"images": [{"id": 1}, {"id": 1}], "annotations": [], "categories": []}',
            "two of the file's image ids are 1",
        ),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "category 1 has no name"),
    ],
)
def test_broken_files_are_named(tmp_path, content, text):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(content)
    refused(tmp_path, text)


def test_ids_may_be_texts(tmp_path):
    images = [{"id": "p", "file_name": "a.jpg"}, {"id": "q", "file_name": "b.jpg"}]
    data = read(write(tmp_path, [annotation(image="q")], images))
    assert data.image_ids == ("p", "q")
    assert data.truth().image.tolist() == [1]


def test_the_file_is_parsed_once(tmp_path, monkeypatch):
    write(tmp_path, [annotation(area=5)])
    before = read(tmp_path)
    assert list(tmp_path.glob(index.INDEX_NAME.replace(".npz", "-*")))
    with monkeypatch.context() as patch:
        patch.setattr("detkit.data.coco_index.load_coco", lambda path: pytest.fail("parsed again"))
        after = read(tmp_path)
    assert after.truth().boxes.equal(before.truth().boxes)
    assert (after.image_ids, after.category_ids) == (before.image_ids, before.category_ids)
    assert after.truth().area.tolist() == [5]
    write(tmp_path, [])
    assert len(read(tmp_path).truth().area) == 0


def test_check_names_what_the_reader_bears(tmp_path):
    objects = [annotation(5, bbox=(3, 3, 0, 5)), annotation(6, bbox=(50, 3, 11, 5)), annotation(7), annotation(8)]
    write(
        tmp_path, objects, [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40}, {"id": 8, "file_name": "b.jpg"}]
    )
    (tmp_path / "images").mkdir()
    random_image(tmp_path / "images" / "a.jpg", (40, 40))
    problems = check_root(tmp_path).problems
    assert {(p.object, p.kind) for p in problems} == {
        (5, "empty box"),
        (6, "box outside"),
        (8, "duplicate object"),
        (0, "size"),
        (0, "missing file"),
    }
    name = "annotations/instances_train.json: image a.jpg"
    assert f"{name}: annotation 8: the same dog as annotation 7" in map(str, problems)
    assert f"{name}: annotation 6: dog: xmax 61 is beyond the image's 40 pixels" in map(str, problems)


@pytest.mark.parametrize("box", [(0, 3, 1e-50, 5), (3, 3, 5, 1e-7)])
def test_a_box_too_thin_for_float32_is_left_out_and_said(tmp_path, box):
    write(tmp_path, [annotation(5, bbox=box), annotation(6)])
    assert len(read(tmp_path).truth().boxes) == 1
    assert (5, "empty box") in {(problem.object, problem.kind) for problem in check_root(tmp_path).problems}
