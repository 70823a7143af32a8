"""However a user writes the name of an image, a folder, a list: it is found alike in every format."""

import json
from pathlib import Path

import pytest

from tests.data.cases.builders import (
    BOX,
    FOLDER,
    FORMATS,
    ROW,
    coco,
    coco_image,
    coco_object,
    make,
    photo,
    voc,
    voc_object,
    voc_xml,
    yolo,
)
from tests.data.cases.seen import seen, thing

STYLES = {
    "as it is": "{name}.jpg",
    "no suffix": "{name}",
    "upper-case suffix": "{name}.JPG",
    "dot": "./{name}.jpg",
    "backslash": "sub\\b.jpg",
    "dot and backslash": ".\\sub\\b.jpg",
    "blanks": "  {name}.jpg \t",
    "two slashes": "sub//b.jpg",
    "folder": "{folder}/{name}.jpg",
    "folder and backslash": "{folder}\\sub\\b.jpg",
    "above": "../{folder}/{name}.jpg",
    "absolute": "{root}/{folder}/{name}.jpg",
    "home": "~/root/{folder}/{name}.jpg",
    "bytes of Windows": "{name}.jpg\r",
}


def write_name(kind: str, root: Path, style: str) -> Path:
    """A data set of one image, sub/b.jpg, that is named in some style where the format names images."""
    make(kind, root, {"sub/b.jpg": [("cat", BOX)]})
    written = STYLES[style].format(name="sub/b", folder=FOLDER[kind], root=root)
    if kind == "voc":
        (root / "ImageSets" / "Main" / "all.txt").write_bytes(f"{written}\n".encode())
    elif kind == "coco":
        path = root / "annotations" / "instances_all.json"
        content = json.loads(path.read_text())
        content["images"][0]["file_name"] = written
        path.write_text(json.dumps(content))
    else:
        (root / "data.yaml").write_text("all: all.txt\nnames: [cat, dog]\n")
        if "{folder}" not in STYLES[style]:
            written = written.replace("sub", f"{FOLDER[kind]}/sub", 1)
        (root / "all.txt").write_bytes(f"{written}\n".encode())
    return root


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", FORMATS)
def test_names_of_images(tmp_path, paths, monkeypatch, kind, style):
    monkeypatch.setenv("HOME", str(tmp_path))
    root = write_name(kind, tmp_path / "root", style)
    paths.see(root, {f"{FOLDER[kind]}/sub/b.jpg": seen(thing())})


@pytest.mark.parametrize("kind", FORMATS)
def test_a_name_that_is_nowhere_is_said(tmp_path, paths, kind):
    root = make(kind, tmp_path / "root", {"a.jpg": [("cat", BOX)], "b.jpg": [("cat", BOX)]})
    (root / FOLDER[kind] / "b.jpg").unlink()
    if kind == "yolo":
        (root / "data.yaml").write_text("all: all.txt\nnames: [cat, dog]\n")
        (root / "all.txt").write_text("images/all/a.jpg\nimages/all/b.jpg\n")
    status, said = paths.run("check", "--root", root)
    assert status == 1
    assert f"{FOLDER[kind]}/b.jpg" in said
    status, said = paths.run("convert", root, "--to", "coco", "--out", tmp_path / "out")
    assert status == 2
    assert "b." in said
    status, said, _ = paths.train(root)
    assert status == 2
    assert "b." in said


ENTRIES = (
    *("images/all", "images\\all", "./images/all", ".\\images\\all", "images/all/", "'  images/all '", "images//all"),
    *("../images/all", "..\\images\\all", "../root/images/all", "~/root/images/all", "{root}/images/all"),
    *("[images/all]", "[images\\all]", "{root}\\images\\all", "all.txt", ".\\all.txt", "all.TXT", "../all.txt"),
)


@pytest.mark.parametrize("entry", ENTRIES)
def test_folders_and_lists_of_data_yaml(tmp_path, paths, monkeypatch, entry):
    monkeypatch.setenv("HOME", str(tmp_path))
    root = tmp_path / "root"
    yolo(root, {"a.jpg": ROW}, f"all: {entry.format(root=root)}\nnames: [cat, dog]\n")
    if entry.lower().endswith(".txt"):
        name = "all.txt" if entry.endswith("txt") else "all.TXT"
        (root / name).write_text("images\\all\\a.jpg\n")
    paths.see(root, {"images/all/a.jpg": seen(thing())})


@pytest.mark.parametrize(
    "base", [".", "./", "..\\root", "../root", "~/root", "{root}", "' {root} '", "/nowhere", "C:\\x"]
)
def test_path_of_data_yaml(tmp_path, paths, monkeypatch, base):
    monkeypatch.setenv("HOME", str(tmp_path))
    root = tmp_path / "root"
    yaml = f"path: {base.format(root=root)}\nall: images/all\nnames: [cat, dog]\n"
    paths.see(yolo(root, {"a.jpg": ROW}, yaml), {"images/all/a.jpg": seen(thing())})


def test_the_folder_inside_the_root_comes_first(tmp_path, paths):
    """Roboflow writes ../train/images and means train/images, also where another set lies beside."""
    for root, row in ((tmp_path / "mine", f"1 {ROW[2:]}"), (tmp_path, "0 .1 .1 .1 .1")):
        for split in ("train", "valid"):
            photo(root / split / "images" / "a.jpg", seed=len(str(root)) + len(split))
            (root / split / "labels").mkdir(parents=True)
            (root / split / "labels" / "a.txt").write_text(row)
    root = tmp_path / "mine"
    for style in ("../{}/images", "..\\{}\\images"):
        (root / "data.yaml").write_text(
            f"train: {style.format('train')}\nval: {style.format('valid')}\nnc: 2\nnames: ['cat', 'dog']\n"
        )
        expected = {"train/images/a.jpg": seen(thing("dog"))}
        paths.see(root, expected, split="train", divide=False)
        paths.made = tmp_path / "again"


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("voc", "Annotations/b.xml", "Annotations/b.XML"),
        ("voc", "Annotations/b.xml", "Annotations/b.Xml"),
        ("voc", "ImageSets/Main/all.txt", "ImageSets/Main/all.TXT"),
        ("coco", "annotations/instances_all.json", "annotations/instances_all.JSON"),
        ("yolo", "labels/all/b.txt", "labels/all/b.TXT"),
        ("yolo", "labels/all/b.txt", "labels/all/b.Txt"),
        ("yolo", "data.yaml", "data.YAML"),
        ("yolo", "data.yaml", "Data.Yml"),
    ],
)
def test_upper_case_suffixes_of_annotations(tmp_path, paths, kind, old, new):
    root = make(kind, tmp_path / "root", {"a.jpg": [("cat", BOX)], "b.jpg": [("dog", (1, 2, 30, 31))]})
    (root / old).rename(root / new)
    expected = {
        f"{FOLDER[kind]}/a.jpg": seen(thing()),
        f"{FOLDER[kind]}/b.jpg": seen(thing("dog", (1, 2, 30, 31))),
    }
    paths.see(root, expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_suffixes_of_images(tmp_path, paths, kind):
    suffixes = (".bmp", ".tif", ".tiff", ".webp", ".ppm", ".png", ".jpeg", ".Jpg", ".JPG", ".TIF")
    files = [f"{i}{suffix}" for i, suffix in enumerate(suffixes)]
    root = make(kind, tmp_path / "root", {file: [("cat", BOX)] for file in files})
    paths.see(root, {f"{FOLDER[kind]}/{file}": seen(thing()) for file in files})


@pytest.mark.parametrize("stated", ["", "a", "x.jpg", "a.jpg", "folder/a.bmp", "C:\\photos\\a.bmp", "A.BMP"])
def test_what_voc_says_of_the_file_does_not_hide_it(tmp_path, paths, stated):
    root = voc(tmp_path / "root", {"a": voc_xml(voc_object(), filename=stated)}, suffix=".bmp")
    paths.see(root, {"JPEGImages/a.bmp": seen(thing())})


@pytest.mark.parametrize("stated", ["b.bmp", "b.Jpg", "b", "b.JPG", " b.jpg ", "..\\JPEGImages\\b.jpg"])
def test_voc_images_of_another_name(tmp_path, paths, stated):
    """Where no image is called as the annotation, <filename> says which it is."""
    root = voc(tmp_path / "root", {"a": voc_xml(voc_object(), filename=stated)}, photos=False)
    file = f"b{Path(stated.strip()).suffix if stated[0] == 'b' and '.' in stated else '.jpg'}"
    photo(root / "JPEGImages" / file)
    paths.see(root, {f"JPEGImages/{file}": seen(thing())})


@pytest.mark.parametrize("suffix", [".bmp", ".Jpg", ".webp"])
def test_coco_images_of_another_suffix(tmp_path, paths, suffix):
    """The file that is there, where file_name has no suffix or that of before a conversion."""
    for file_name in ("a", "a.jpg"):
        root = coco(tmp_path / f"root{len(file_name)}", [coco_image(file_name)], [coco_object()], photos=False)
        photo(root / "all" / f"a{suffix}")
        paths.see(root, {f"all/a{suffix}": seen(thing())})
