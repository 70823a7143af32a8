"""Nothing found is never fine: folders, files, lists and splits without anything, images without any object."""

import json
from pathlib import Path

import pytest

from tests.data.cases.builders import (
    BOX,
    CATEGORIES,
    FORMATS,
    coco,
    coco_image,
    coco_object,
    make,
    voc,
    voc_object,
    voc_xml,
    yolo,
)


def refuses_to_train(paths, root, *words) -> None:
    """Training says so before it writes anything."""
    status, said, out = paths.train(root)
    assert status == 2, said
    assert len(said.strip().splitlines()) == 1
    assert all(word in said for word in words), said
    assert not out.exists()


@pytest.mark.parametrize("kind", [*FORMATS, "coco without categories", "yolo without names"])
def test_no_object_in_any_image(tmp_path, paths, kind):
    root = tmp_path / "root"
    if kind == "coco without categories":
        coco(root, [coco_image("a.jpg", 1), coco_image("b.jpg", 2)], [], [])
    elif kind == "yolo without names":
        yolo(root, {"a.jpg": "", "b.jpg": ""}, None)
    else:
        make(kind, root, {"a.jpg": [], "b.jpg": []})
    status, said = paths.run("check", "--root", root)
    assert status == 1, said
    assert "no object" in said
    refuses_to_train(paths, root, "no object", "all")


@pytest.mark.parametrize("kind", ["boxes without area", "crowds", "difficult objects that are left out"])
def test_no_object_to_train_on(tmp_path, paths, kind):
    root, keys = tmp_path / "root", {}
    if kind == "boxes without area":
        coco(root, [coco_image("a.jpg")], [coco_object(box=(5, 5, 5, 9))])
    elif kind == "crowds":
        coco(root, [coco_image("a.jpg")], [coco_object(iscrowd=1)])
    else:
        voc(root, {"a": voc_xml(voc_object(more="<difficult>1</difficult>"))})
        keys["data.difficult"] = "false"
    status, said, out = paths.train(root, **keys)
    assert status == 2, said
    assert "no object" in said
    assert not out.exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_without_objects_among_others_is_fine(tmp_path, paths, kind):
    root = make(kind, tmp_path / "root", {"a.jpg": [], "b.jpg": [("dog", BOX)]})
    status, said, _ = paths.train(root)
    assert status == 0, said


@pytest.mark.parametrize(
    ("kind", "file", "content"),
    [
        ("voc", "Annotations/a.xml", ""),
        ("voc", "Annotations/a.xml", "<annotation>"),
        ("voc", "Annotations/a.xml", "<html/>"),
        ("voc", "ImageSets/Main/all.txt", ""),
        ("voc", "ImageSets/Main/all.txt", " \n\n"),
        ("coco", "annotations/instances_all.json", ""),
        ("coco", "annotations/instances_all.json", "{}"),
        ("coco", "annotations/instances_all.json", "null"),
        (
            "coco",
            "annotations/instances_all.json",
            json.dumps({"images": [], "annotations": [], "categories": CATEGORIES}),
        ),
        ("yolo", "data.yaml", ""),
        ("yolo", "data.yaml", "all: all.txt\nnames: [cat, dog]\n"),  # a list without a line
        ("yolo", "data.yaml", "all: nowhere\nnames: [cat, dog]\n"),
        ("yolo", "data.yaml", "all: nothing\nnames: [cat, dog]\n"),  # a folder without an image
        ("yolo", "data.yaml", "all: ''\nnames: [cat, dog]\n"),
        ("yolo", "data.yaml", "all: []\nnames: [cat, dog]\n"),
        ("yolo", "data.yaml", "all: 3\nnames: [cat, dog]\n"),
    ],
)
def test_what_holds_nothing_is_said(tmp_path, paths, kind, file, content):
    root = make(kind, tmp_path / "root", {"a.jpg": [("cat", BOX)]})
    (root / file).write_text(content)
    (root / "nothing").mkdir()
    if kind == "yolo":
        (root / "all.txt").write_text("\n")
    paths.refuse(root, "all" if "all:" in content else Path(file).stem.removeprefix("instances_"), divide=False)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_whole_data_set_without_labels_is_said(tmp_path, paths, kind):
    """Annotations that lie elsewhere than they should are not images without objects."""
    root = make(kind, tmp_path / "root", {"a.jpg": [("cat", BOX)], "b.jpg": [("cat", BOX)]})
    folder = {"voc": "Annotations", "coco": "annotations", "yolo": "labels"}[kind]
    (root / folder).rename(root / "elsewhere")
    for action in (["check", "--root", root], ["convert", root, "--to", "voc", "--out", tmp_path / "out"]):
        status, said = paths.run(*action)
        assert status in (1, 2), said
    refuses_to_train(paths, root)


@pytest.mark.parametrize(
    "folders", [[], ["images"], ["Annotations"], ["JPEGImages"], ["annotations"], ["train", "valid"]]
)
def test_empty_folders_are_said(tmp_path, paths, folders):
    root = tmp_path / "root"
    root.mkdir()
    for name in folders:
        (root / name).mkdir()
    for action in (
        ["check", "--root", root],
        ["stats", "--root", root],
        ["split", root],
        ["convert", root, "--to", "voc", "--out", tmp_path / "out"],
    ):
        status, said = paths.run(*action)
        assert status == 2
        assert "TMP/root" in said
    refuses_to_train(paths, root, "TMP/root")
