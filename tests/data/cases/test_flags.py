"""Flags are read by a vocabulary: difficult, truncated, crowd, in whatever words."""

import json

import pytest

from tests.data.cases.builders import BOX, ROW, coco, coco_image, coco_object, voc, voc_object, voc_xml, yolo
from tests.data.cases.seen import seen, thing

NO = ("0", "0.0", "", " ", "no", "No", "none", "None", "false", "False", "FALSE", "unspecified", "Unspecified")
YES = ("1", " 1 ", "yes", "YES", "true", "True")
OTHER = ("2", "-1", "maybe", "nan", "01.5")
VOC_FLAGS = ("difficult", "truncated", "crowd")
COCO_FLAGS = {"iscrowd": "crowd", "difficult": "difficult", "ignore": "difficult", "truncated": "truncated"}


@pytest.mark.parametrize("flag", VOC_FLAGS)
def test_words_of_voc(tmp_path, paths, flag):
    words = [*NO, *YES]
    objects = {f"{i:02d}": voc_object(more=f"<{flag}>{word}</{flag}>") for i, word in enumerate(words)}
    objects["90"] = voc_object(more=f"<{flag}/>")
    objects["91"] = voc_object()
    root = voc(tmp_path / "root", {name: voc_xml(one) for name, one in objects.items()})
    flags = {f"{i:02d}": flag if word in YES else "" for i, word in enumerate(words)}
    expected = {f"JPEGImages/{name}.jpg": seen(thing(flags=flags.get(name, ""))) for name in objects}
    paths.see(root, expected)


@pytest.mark.parametrize(
    ("flag", "word"), [("difficult", word) for word in OTHER] + [("truncated", "maybe"), ("crowd", "2")]
)
def test_other_words_of_voc_are_said(tmp_path, paths, flag, word):
    xml = voc_xml(voc_object("dog"), voc_object(more=f"<{flag}>{word}</{flag}>"))
    paths.refuse(voc(tmp_path / "root", {"a": xml}), "Annotations/a.xml", "object 2", flag, word)


@pytest.mark.parametrize("key", COCO_FLAGS)
def test_words_and_numbers_of_coco(tmp_path, paths, key):
    no, yes = (*NO, 0, 0.0, False, None), (*YES, 1, 1.0, True)
    images = [coco_image(f"{i:02d}.jpg", i) for i in range(len(no) + len(yes) + 1)]
    objects = [coco_object(i, **{key: value}) for i, value in enumerate((*no, *yes))]
    root = coco(tmp_path / "root", images, [*objects, coco_object(len(no) + len(yes))])
    expected = {
        f"all/{image['file_name']}": seen(
            thing(flags=COCO_FLAGS[key] if len(no) <= image["id"] < len(no) + len(yes) else "")
        )
        for image in images
    }
    paths.see(root, expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [("iscrowd", value) for value in ("maybe", 2, -1, 0.5, [], [0], {})]
    + [("difficult", "2"), ("ignore", "nan"), ("truncated", "-1")],
)
def test_other_values_of_coco_are_said(tmp_path, paths, key, value):
    root = coco(tmp_path / "root", [coco_image("a.jpg")], [coco_object(), coco_object(category=2, **{key: value})])
    paths.refuse(root, "instances_all.json", "annotation 2", key, json.dumps(value).strip('"'))


@pytest.mark.parametrize("key", ["difficult", "crowd", "truncated"])
def test_positions_of_yolo(tmp_path, paths, key):
    root = yolo(tmp_path / "root", {"a.jpg": f"{ROW}\n1 .25 .25 .5 .5\n"})
    (root / "flags.json").write_text(json.dumps({"labels/all/a.txt": {"rows": 2, key: [2]}}))
    expected = {"images/all/a.jpg": seen([thing(), thing("dog", (0, 0, 24, 16), key)])}
    paths.see(root, expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("difficult", [3]),  # of two objects
        ("difficult", [0]),
        ("crowd", [-1]),
        ("crowd", [1.5]),
        ("truncated", [True]),
        ("truncated", "12"),
        ("truncated", ["1"]),
        ("difficult", [10**30]),
        ("difficult", {"1": 0}),
        ("dificult", [1]),
        ("area", {"3": 5}),
        ("area", {"1": "wide"}),
        ("area", {"1": -5}),
        ("area", {"1": None}),
        ("rows", "2"),
        ("rows", 2.5),
    ],
)
def test_other_positions_of_yolo_are_said(tmp_path, paths, key, value):
    root = yolo(tmp_path / "root", {"a.jpg": f"{ROW}\n1 .25 .25 .5 .5\n"})
    (root / "flags.json").write_text(json.dumps({"labels/all/a.txt": {"rows": 2, key: value}}))
    paths.refuse(root, "flags.json")


def test_an_object_in_the_words_of_the_report(tmp_path, paths):
    """Words of several tools in one file, of which a single object is difficult."""
    words = ("Unspecified", "False", "0.0", "no", "None", "0", "1")
    boxes = [(i, 0, i + 4, 9) for i in range(len(words))]
    objects = [voc_object(box=box, more=f"<difficult>{word}</difficult>") for box, word in zip(boxes, words)]
    things = [thing(box=box, flags="difficult" if word == "1" else "") for box, word in zip(boxes, words)]
    paths.see(voc(tmp_path / "root", {"a": voc_xml(*objects)}), {"JPEGImages/a.jpg": seen(things)})


def test_difficult_stays_difficult(tmp_path, paths):
    root = voc(tmp_path / "root", {"a": voc_xml(voc_object(box=BOX, more="<difficult> TRUE </difficult>"))})
    paths.see(root, {"JPEGImages/a.jpg": seen(thing(flags="difficult"))})
