"""The image's own upright size is the only one; a stated one that differs is said."""

import re

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from detkit.config import DataConfig
from detkit.data.formats import open_root
from detkit.data.opening import open_dataset
from tests.data.cases.builders import (
    FOLDER,
    FORMATS,
    SIZE,
    coco,
    coco_image,
    coco_object,
    make,
    photo,
    voc,
    voc_object,
    voc_xml,
    yolo,
    yolo_row,
)
from tests.data.cases.seen import content, lines_with, seen, thing

STATED = {
    "half": (24, 16),
    "double": (96, 64),
    "turned": (32, 48),
    "one more": (49, 32),
    "huge": (10**30, 10**30),
    "beyond int64": (2**63, 32),
}


def stated(kind: str, root, sizes) -> None:
    """Images a, b, ... of which each has one object and states a size."""
    names = "abcdef"[: len(sizes)]
    if kind == "voc":
        return voc(root, {name: voc_xml(voc_object(), size=size) for name, size in zip(names, sizes)})
    images = [coco_image(f"{name}.jpg", key, size) for key, (name, size) in enumerate(zip(names, sizes))]
    return coco(root, images, [coco_object(key) for key in range(len(sizes))])


@pytest.mark.parametrize("size", STATED)
@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_a_stated_size_that_differs(tmp_path, paths, kind, size):
    """Boxes are as they are written, cut to the image and never to what is stated."""
    width, height = STATED[size]
    root = stated(kind, tmp_path / "root", [(width, height), SIZE])
    folder = FOLDER[kind]
    expected = {f"{folder}/a.jpg": seen(thing()), f"{folder}/b.jpg": seen(thing())}
    paths.see(root, expected, problems=[(f"{folder}/a.jpg", "48x32", f"{width}x{height}")])


@pytest.mark.parametrize("size", [None, (0, 0), ("", ""), (48, 0), (-48, -32), ("wide", "high"), ("nan", "inf")])
@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_no_stated_size(tmp_path, kind, size):
    """What states no size is of the image's; whether `check` says so is its own matter."""
    root = stated(kind, tmp_path / "root", [size])
    expected = {f"{FOLDER[kind]}/a.jpg": seen(thing())}
    assert content(open_root(root, ["all"]), root) == expected
    assert content(open_dataset(DataConfig(root=str(root), train=["all"]), "train"), root) == expected


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_sizes_that_differ_are_said_once_with_their_count(tmp_path, paths, kind):
    root = stated(kind, tmp_path / "root", [(24, 16), SIZE, (96, 64), (1, 1)])
    status, said = paths.run("convert", root, "--to", "yolo", "--out", tmp_path / "out")
    assert status == 0, said
    assert len(re.findall(r"(?m)^.*size.*\b3\b.*$|^.*\b3\b.*size.*$", said)) == 1, said
    assert content(open_root(tmp_path / "out", ["all"]), tmp_path / "out")["images/all/c.jpg"] == seen(thing())
    status, said, _ = paths.train(root)
    assert status == 0, said
    assert len(re.findall(r"(?m)^.*size.*\b3\b.*$|^.*\b3\b.*size.*$", said)) == 1, said


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_right_sizes_are_not_said(tmp_path, paths, kind):
    root = stated(kind, tmp_path / "root", [SIZE, SIZE])
    status, said, _ = paths.train(root)
    assert status == 0
    assert not lines_with(said, ("48x32",))


@pytest.mark.parametrize("kind", FORMATS)
def test_boxes_are_cut_to_the_image(tmp_path, paths, kind):
    """Also where a stated size would let them be larger."""
    if kind == "yolo":
        root = make(kind, tmp_path / "root", {"a.jpg": [("cat", (24, 16, 48, 32))]})
        paths.see(root, {"images/all/a.jpg": seen(thing(box=(24, 16, 48, 32)))})
        return
    root = stated(kind, tmp_path / "root", [(96, 64)])
    file = root / {"voc": "Annotations/a.xml", "coco": "annotations/instances_all.json"}[kind]
    old, new = ("<xmax>34<", "<xmax>90<") if kind == "voc" else ("24, 16]", "80, 16]")
    file.write_text(file.read_text().replace(old, new))
    data = open_root(root, ["all"])
    assert content(data, root) == {f"{FOLDER[kind]}/a.jpg": seen(thing(box=(10, 6, 48, 22)))}


IMAGES = [".jpg", ".png", ".tif", ".webp", *([".avif"] if features.check("avif") else [])]


@pytest.mark.parametrize("suffix", IMAGES)
@pytest.mark.parametrize("kind", FORMATS)
def test_orientation(tmp_path, paths, kind, suffix):
    """Size, boxes and pixels are of the upright image, whatever file it is in."""
    root = tmp_path / "root"
    sizes = {f"{way}{suffix}": SIZE if way < 5 else SIZE[::-1] for way in range(1, 9)}
    box = (10, 6, 30, 22)
    if kind == "voc":
        voc(root, {file[0]: voc_xml(voc_object(box=box), size=size) for file, size in sizes.items()}, photos=False)
    elif kind == "coco":
        images = [coco_image(file, int(file[0]), size) for file, size in sizes.items()]
        coco(root, images, [coco_object(way, box=box) for way in range(1, 9)], photos=False)
    else:
        yolo(root, {file: yolo_row(box=box, size=size) for file, size in sizes.items()})
    folder = FOLDER[kind]
    for file in sizes:
        photo(root / folder / file, seed=int(file[0]), orientation=int(file[0]))
    paths.see(root, {f"{folder}/{file}": seen(thing(box=box), size) for file, size in sizes.items()})
    opened = open_root(root, ["all"])
    for i in range(len(opened)):
        upright = ImageOps.exif_transpose(Image.open(opened.path(i))).convert("RGB")
        assert np.abs(opened.image(i).astype(int) - np.asarray(upright)).mean() < 5


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_a_size_of_the_stored_pixels_is_said_or_followed(tmp_path, paths, kind):
    """An annotation that states the size before turning: size and pixels are of one image, and it is no secret."""
    root = stated(kind, tmp_path / "root", [SIZE])
    photo(root / FOLDER[kind] / "a.jpg", orientation=6)
    data = open_root(root, ["all"])
    content(data, root)
    if tuple(data.sizes[0]) != SIZE:
        status, said = paths.run("check", "--root", root)
        assert status == 1
        assert lines_with(said, ("a.jpg", "32x48", "48x32"))
