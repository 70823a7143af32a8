"""File names that are odd: they work on every path, or are said by every path before any work."""

import json
import os
from pathlib import Path

import pytest

from tests.data.cases.builders import (
    BOX,
    FOLDER,
    FORMATS,
    coco,
    coco_image,
    coco_object,
    photo,
    voc,
    voc_object,
    voc_xml,
    yolo,
    yolo_row,
)
from tests.data.cases.seen import seen, thing

NAMES = {
    "no UTF-8": os.fsdecode(b"caf\xe9"),
    "245 bytes": "n" * 245,
    "245 bytes of two a letter": "é" * 122,
    "blank before": " a",
    "blank behind": "a ",
    "two blanks": "a  b",
    "number behind a blank": "a 1",
    "line end inside": "a\nb",
    "line end of Windows": "a\r\nb",
    "other line ends": "a\u2028b\x0bc\x85d",
    "tab": "a\tb",
    "escape": "a\x1b[31mb",
    "quotes": "a'b\"c",
    "dots": "a.b..c",
    "dot before": ".a",
    "minus before": "-a",
    "tilde": "~a",
    "marks": "a&<b>%s{0}#?*[1],;:|$HOME",
    "composed": "e\u0301",
    "wide": "猫🐈",
    "a word of YAML": "null",
}


def write(kind: str, root: Path, name: str) -> str:
    """A data set of an image of an odd name and a plain one; the odd one's file."""
    if kind == "voc":
        listed = f"{name}\nplain\n"
        voc(root, {name: voc_xml(voc_object()), "plain": voc_xml(voc_object("dog"))}, listed)
    elif kind == "coco":
        coco(root, [coco_image("plain.jpg", 1), coco_image("odd.jpg", 2)], [coco_object(1, 2), coco_object(2)])
        path = root / "annotations" / "instances_all.json"
        path.write_text(path.read_text().replace('"odd.jpg"', json.dumps(f"{name}.jpg")))
        (root / "all" / "odd.jpg").rename(root / "all" / f"{name}.jpg")
    else:
        yolo(root, {f"{name}.jpg": yolo_row(), "plain.jpg": yolo_row("dog")})
    return f"{FOLDER[kind]}/{name}.jpg"


@pytest.mark.parametrize(
    ("kind", "which"),  # YOLO's folders are searched without hidden files
    [(kind, which) for kind in FORMATS for which in NAMES if (kind, which) != ("yolo", "dot before")],
)
def test_an_odd_name_works_or_is_said(tmp_path, paths, kind, which):
    root = tmp_path / "root"
    odd = write(kind, root, NAMES[which])
    expected = {odd: seen(thing(box=BOX)), f"{FOLDER[kind]}/plain.jpg": seen(thing("dog"))}
    paths.see_or_refuse(root, expected, divide=False, odd=True)


@pytest.mark.parametrize("which", ["no UTF-8", "245 bytes", "line end inside", "escape", "blank behind"])
@pytest.mark.parametrize("kind", FORMATS)
def test_training_on_an_odd_name(tmp_path, paths, kind, which):
    """To the end, its report with it; or one line before anything is written."""
    root = tmp_path / "root"
    write(kind, root, NAMES[which])
    status, said, out = paths.train(root)
    assert "\x1b[31m" not in said
    if status == 0:
        assert {"last.pt", "metrics.json", "report.html"} <= {path.name for path in out.iterdir()}
    else:
        assert status == 2
        assert len(said.strip().splitlines()) == 1, said
        assert not out.exists()


@pytest.mark.parametrize("which", ["no UTF-8", "blank behind", "line end inside", "245 bytes"])
def test_a_root_of_an_odd_name(tmp_path, paths, which):
    root = tmp_path / NAMES[which]
    yolo(root, {"a.jpg": yolo_row()})
    paths.made = tmp_path / "made"
    paths.see_or_refuse(root, {"images/all/a.jpg": seen(thing())}, odd=True)


def test_folders_of_odd_names(tmp_path, paths):
    """A blank, no UTF-8 and a line end in the folders above an image."""
    root = tmp_path / "root"
    names = [f"{NAMES[which]}/b.jpg" for which in ("blank behind", "no UTF-8", "line end inside")]
    yolo(root, {name: yolo_row() for name in names})
    photo(root / "images" / "all" / "plain.jpg", seed=9)
    expected = {f"images/all/{name}": seen(thing()) for name in names} | {"images/all/plain.jpg": seen([])}
    paths.see_or_refuse(root, expected, divide=False, odd=True)
