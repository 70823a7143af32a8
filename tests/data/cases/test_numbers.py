"""Numbers of any size: ids are exact, classes have a limit, nothing overflows."""

import json

import pytest

from detkit.data.formats import open_root
from tests.data.cases.builders import ROW, coco, coco_image, coco_object, voc, voc_object, voc_xml, yolo
from tests.data.cases.seen import seen, thing

IDS = {
    "both sides of 2^63": [2**63 - 1, 2**63, 2**63 + 1, 17797172410793473910, 5],
    "beyond 2^64": [2**64 - 1, 2**64, 10**30, 10**30 + 1, 0],
    "below zero": [-1, 0, -(2**63), -(2**63) - 1, 1],
    "next to one another above 2^53": [2**53, 2**53 + 1, 2**53 + 2, 9523843951405948789, 9523843951405948790],
    "texts": ["9523843951405948789", "a1", "A1", " a1", "é"],
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("what", ["image", "category", "annotation"])
def test_ids_of_coco_are_exact(tmp_path, paths, kind, what):
    ids = IDS[kind]
    if what == "annotation" and kind == "texts":
        ids = [2**70 + i for i in range(5)]
    image_ids, category_ids, annotation_ids = ([*range(1, 6)] for _ in range(3))
    if what == "image":
        image_ids = ids
    elif what == "category":
        category_ids = ids
    else:
        annotation_ids = ids
    names = ["a", "b", "c", "d", "e"]
    images = [coco_image(f"{name}.jpg", key) for name, key in zip(names, image_ids)]
    objects = [
        coco_object(image, category, id=key) for image, category, key in zip(image_ids, category_ids, annotation_ids)
    ]
    categories = [{"id": key, "name": f"class {name}"} for key, name in zip(category_ids, names)]
    root = coco(tmp_path / "root", images, objects, categories)
    paths.see(root, {f"all/{name}.jpg": seen(thing(f"class {name}")) for name in names})
    for name in ("all", "train"):  # which `split` made
        opened = open_root(root, [name])
        assert [*opened.image_ids] == image_ids
        by_name = dict(zip(opened.classes, opened.category_ids))
        assert [by_name[f"class {one}"] for one in names] == category_ids
    written = json.loads((root / "annotations" / "instances_train.json").read_text())
    assert [image["id"] for image in written["images"]] == image_ids
    assert [one["id"] for one in written["annotations"]] == annotation_ids


def test_both_parts_of_a_split_have_their_objects(tmp_path, paths):
    ids = [key for keys in (IDS["both sides of 2^63"], IDS["beyond 2^64"]) for key in keys]
    images = [coco_image(f"{i}.jpg", key) for i, key in enumerate(ids)]
    root = coco(tmp_path / "root", images, [coco_object(key, 1 + i % 2) for i, key in enumerate(ids)])
    status, said = paths.run("split", root, "--train=.5", "--val=0", "--test=.5")
    assert status == 0, said
    parts = [open_root(root, [name]) for name in ("train", "test")]
    assert sorted(key for part in parts for key in part.image_ids) == sorted(ids)
    assert [len(part.truth().labels) for part in parts] == [len(part) for part in parts]


@pytest.mark.parametrize("key", [1.5, None, True, [], {"a": 1}])
@pytest.mark.parametrize("what", ["images", "categories"])
def test_what_is_no_id_is_said(tmp_path, paths, what, key):
    root = coco(tmp_path / "root", [coco_image("a.jpg")], [coco_object()])
    path = root / "annotations" / "instances_all.json"
    content = json.loads(path.read_text())
    content[what][0]["id"] = key
    path.write_text(json.dumps(content))
    paths.refuse(root, "instances_all.json", "id", json.dumps(key))


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo", "data.yaml"])
def test_numbers_of_thousands_of_digits_are_said(tmp_path, paths, kind):
    """Python itself reads no whole number of more than 4,300 digits."""
    digits, root = "7" * 5000, tmp_path / "root"
    if kind == "voc":
        voc(root, {"a": voc_xml(voc_object(box=(1, 2, digits, 9)))})
        words = ("Annotations/a.xml", "xmax")
    elif kind == "coco":
        coco(root, [coco_image("a.jpg")], [coco_object(id=123456)])
        path = root / "annotations" / "instances_all.json"
        path.write_text(path.read_text().replace("123456", digits))
        words = ("instances_all.json",)
    elif kind == "yolo":
        yolo(root, {"a.jpg": f"{digits} .5 .5 .1 .1"})
        words = ("labels/all/a.txt", "line 1")
    else:
        yolo(root, {"a.jpg": ROW}, f"names: {{0: cat, {digits}: dog}}\n")
        words = ("data.yaml", "names")
    paths.refuse(root, *words)


@pytest.mark.parametrize(
    ("number", "named"),
    [("1000000", False)] + [(text, True) for text in ("2000000000", str(2**63), str(10**30), "1e9", "1e300")],
)
def test_huge_classes_are_said(tmp_path, paths, number, named):
    """Without names, too: classes have a limit of some 100,000. See test_bounded.py for two billions."""
    root = yolo(tmp_path / "root", {"a.jpg": f"{ROW}\n{number} .5 .5 .1 .1\n"}, *([] if named else [None]))
    paths.refuse(root, "labels/all/a.txt", "line 2", "class")


def test_a_class_of_some_thousands_needs_no_names(tmp_path):
    root = yolo(tmp_path / "root", {"a.jpg": f"9999 {ROW[2:]}"}, None)
    data = open_root(root, ["all"])
    assert len(data.classes) == 10_000
    assert data.classes[data.record(0).annotations.labels[0]] == "9999"


@pytest.mark.parametrize("edge", ["xmax", "xmin"])
@pytest.mark.parametrize("number", ["1e300", "1e400", "-1e300", "inf", "nan", "1" * 400, "0x10"])
def test_huge_and_odd_edges_of_voc(tmp_path, paths, edge, number):
    """A number that ends beyond the image is cut, or said; no traceback."""
    corner = {"xmin": "11", "xmax": "34"}[edge]
    xml = voc_xml(voc_object()).replace(f"<{edge}>{corner}<", f"<{edge}>{number}<")
    assert number in xml
    root = voc(tmp_path / "root", {"a": xml})
    status, said = paths.run("check", "--root", root)
    assert status == 1
    assert "Annotations/a.xml" in said


@pytest.mark.parametrize("area", [-1, "wide", [5], float("nan")])
def test_areas_that_are_none_are_said(tmp_path, paths, area):
    root = coco(tmp_path / "coco", [coco_image("a.jpg")], [coco_object(area=area, id=3)])
    paths.refuse(root, "instances_all.json", "annotation 3", "area")
    root = voc(tmp_path / "voc", {"a": voc_xml(voc_object(more=f"<area>{area}</area>"))})
    paths.refuse(root, "Annotations/a.xml", "object 1", "area")
