"""Files are read in the encoding that they declare; what cannot be read is that file's own problem."""

import json

import pytest

from tests.data.cases.builders import (
    ROW,
    coco,
    coco_image,
    coco_object,
    voc,
    voc_object,
    voc_xml,
    yolo,
)
from tests.data.cases.seen import seen, thing

ENCODINGS = {
    "gb2312": "猫",
    "GB2312": "狗",
    "gbk": "貓",
    "gb18030": "猫",
    "big5": "貓",
    "shift_jis": "ねこ",
    "Shift-JIS": "犬",
    "euc-jp": "犬",
    "euc-kr": "고양이",
    "windows-1251": "кот",
    "cp1252": "bébé",
    "iso-8859-1": "bébé",
    "utf-8": "猫",
    "utf-16": "猫",
    "UTF-16": "кот",
    "ascii": "cat",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_declared_encodings_of_xml(tmp_path, paths, encoding):
    name = ENCODINGS[encoding]
    text = voc_xml(voc_object(name), voc_object(box=(0, 0, 5, 5)), encoding=encoding)
    root = voc(tmp_path / "root", {"a": text.encode(encoding), "b": voc_xml(voc_object("dog"))})
    expected = {
        "JPEGImages/a.jpg": seen([thing(name), thing(box=(0, 0, 5, 5))]),
        "JPEGImages/b.jpg": seen(thing("dog")),
    }
    paths.see(root, expected)


def test_a_mark_at_the_start_of_xml(tmp_path, paths):
    root = voc(tmp_path / "root", {"a": voc_xml(voc_object("猫"), encoding="utf-8").encode("utf-8-sig")})
    paths.see(root, {"JPEGImages/a.jpg": seen(thing("猫"))})


UNREADABLE = {
    "unknown": voc_xml(voc_object(), encoding="x-martian").encode(),
    "no text encoding": voc_xml(voc_object(), encoding="base64").encode(),
    "no name at all": voc_xml(voc_object(), encoding="-1").encode(),
    "declared, but other bytes": voc_xml(voc_object("猫"), encoding="gb2312").encode("utf-16"),
    "bytes that it does not have": voc_xml(voc_object("cat"), encoding="shift_jis")
    .encode()
    .replace(b"cat", b"\xff\xff"),
    "not what xml is by default": voc_xml(voc_object("狗")).encode("gbk"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_xml_that_cannot_be_decoded_is_said(tmp_path, paths, kind):
    root = voc(tmp_path / "root", {"good": voc_xml(voc_object()), "bad": UNREADABLE[kind]})
    paths.refuse(root, "Annotations/bad.xml", *(["x-martian"] if kind == "unknown" else []))


@pytest.mark.parametrize("kind", UNREADABLE)
def test_xml_of_no_split_does_not_disturb(tmp_path, paths, kind):
    root = voc(tmp_path / "root", {"good": voc_xml(voc_object()), "bad": UNREADABLE[kind]}, "good\n")
    paths.see(root, {"JPEGImages/good.jpg": seen(thing())}, divide=False)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1", "gbk"])
@pytest.mark.parametrize(
    "file", ["ImageSets/Main/all.txt", "instances_all.json", "data.yaml", "all.txt", "labels/all/é.txt", "classes.txt"]
)
def test_texts_that_declare_nothing(tmp_path, paths, file, encoding):
    """UTF-8 is read; whatever else is read by its mark or said, and never taken for something else."""
    root, name = tmp_path / "root", "é.jpg"
    if file.startswith("ImageSets"):
        voc(root, {"é": voc_xml(voc_object())})
        image = f"JPEGImages/{name}"
    elif file.endswith(".json"):
        file, image = f"annotations/{file}", f"all/{name}"
        coco(root, [coco_image(name)], [coco_object()], [{"id": 1, "name": "cat"}])
        (root / file).write_text(json.dumps(json.loads((root / file).read_text()), ensure_ascii=False))
    else:
        image = f"images/all/{name}"
        yolo(root, {name: ROW}, "names: [cat, é]\n" if file == "data.yaml" else None)
        if file == "all.txt":
            (root / "data.yaml").write_text("all: all.txt\nnames: [cat]\n")
            (root / file).write_text(image)
        elif file == "classes.txt":
            (root / file).write_text("cat\né\n")
        elif file.startswith("labels"):
            (root / file).write_text(f"{ROW}\n# é\n" if encoding != "utf-8-sig" else ROW)
    text = (root / file).read_text()
    (root / file).write_bytes(text.encode(encoding))
    class_name = "0" if file.startswith("labels") else "cat"
    expected = {image: seen(thing(class_name))}
    if encoding == "utf-8-sig":
        paths.see(root, expected)
    else:
        paths.see_or_refuse(root, expected, file, divide=not file.endswith("all.txt"))
