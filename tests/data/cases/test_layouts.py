"""Folders as tools and sites export them, in VOC's and YOLO's formats."""

import pytest

from detkit.config import DataConfig
from detkit.data.formats import find_format, find_splits
from detkit.data.opening import split_names
from tests.data.cases.builders import ROW, photo, voc, voc_object, voc_xml, yolo
from tests.data.cases.seen import seen, thing


def pair(folder, name: str, suffix: str = ".jpg", xmls=None, seed: int = 0, one: str = "cat") -> None:
    """An image and its XML, side by side or in `xmls`."""
    photo(folder / f"{name}{suffix}", seed=seed)
    path = (xmls or folder) / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(voc_xml(voc_object(one)))


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("train", "val"), ("train",), ("Train", "Test")])
def test_splits_in_folders_of_images_and_xml(tmp_path, paths, names):
    """Roboflow's export: train/a.jpg beside train/a.xml; a name may be in several splits."""
    root = tmp_path / "root"
    for seed, name in enumerate(names):
        pair(root / name, "a", seed=seed)
        pair(root / name, f"{name}_jpg.rf.0123", seed=seed + 10, one="dog")
    assert find_format(root) == "voc"
    assert sorted(find_splits(root)) == sorted(names)
    for name in names:
        paths.made = tmp_path / f"made-{name}"
        expected = {f"{name}/a.jpg": seen(thing()), f"{name}/{name}_jpg.rf.0123.jpg": seen(thing("dog"))}
        paths.see(root, expected, split=name, classes=["cat", "dog"], divide=False)
    if names[0] == "train":
        config = DataConfig(root=str(root))
        assert split_names(config, "train") == ["train"]
        assert split_names(config, "val") == [*names[1:2]]
    status, said = paths.run("check", "--root", root)
    assert status == 0, said
    assert f"{2 * len(names)} images, {2 * len(names)} objects" in said


@pytest.mark.parametrize(
    ("images", "xmls"),
    [
        ("images", "annotations"),
        ("images", "Annotations"),
        ("JPEGImages", "annotations"),
        ("images", "labels"),
        ("images", "annotations/xmls"),
        (".", "."),
        ("all", "all"),
        ("images", "images"),
        ("Images", "Annotations"),
    ],
)
def test_folders_without_lists(tmp_path, paths, images, xmls):
    """Kaggle's images/ and annotations/, labelImg's images and XML in one folder: `split` makes the lists."""
    root = tmp_path / "root"
    for seed, name in enumerate("abcd"):
        pair(root / images, name, suffix=".png", xmls=root / xmls, seed=seed)
    assert find_format(root) == "voc"
    status, said = paths.run("split", root, "--train=.5", "--val=0", "--test=.5")
    assert status == 0, said
    assert "train 2, test 2 images" in said
    status, said = paths.run("check", "--root", root)
    assert status == 0, said
    assert "4 images, 4 objects" in said
    prefix = "" if images == "." else f"{images}/"
    halves = [(root / "ImageSets" / "Main" / f"{name}.txt").read_text().split() for name in ("train", "test")]
    for half, name in zip(halves, ("train", "test")):
        paths.made = tmp_path / f"made-{name}"
        ids = [line.rpartition("/")[2].removesuffix(".png") for line in half]
        paths.see(root, {f"{prefix}{one}.png": seen(thing()) for one in ids}, split=name, divide=False)


@pytest.mark.parametrize("parts", [("JPEGImages", "Annotations"), ("images", "annotations")])
def test_lists_beside_folders_of_other_names(tmp_path, paths, parts):
    root = tmp_path / "root"
    for seed, name in enumerate("ab"):
        pair(root / parts[0], name, xmls=root / parts[1], seed=seed)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "all.txt").write_text("a\nb\n")
    paths.see(root, {f"{parts[0]}/{name}.jpg": seen(thing()) for name in "ab"})


@pytest.mark.parametrize(
    "listed", ["a\nsub/b\nsub/deep/c\n", "a\nsub\\b\nsub\\deep\\c\n", "a 1\nsub/b -1\nsub/deep/c 0\n"]
)
def test_folders_below(tmp_path, paths, listed):
    """CVAT's export: ImageSets, Annotations and JPEGImages have the same folders below."""
    names = ("a", "sub/b", "sub/deep/c")
    root = voc(tmp_path / "root", {name: voc_xml(voc_object()) for name in names}, listed)
    paths.see(root, {f"JPEGImages/{name}.jpg": seen(thing()) for name in names})


def test_equal_names_in_folders_below(tmp_path, paths):
    xmls = {"x/1": voc_xml(voc_object("cat")), "y/1": voc_xml(voc_object("dog")), "1": voc_xml(voc_object("cow"))}
    root = voc(tmp_path / "root", xmls)
    expected = {f"JPEGImages/{name}.jpg": seen(thing(one)) for name, one in zip(xmls, ("cat", "dog", "cow"))}
    paths.see(root, expected)


POSE = {
    "points with x and y": ("[3, 2]", ".35 .4 .45 .6 .5 .5"),
    "points that are seen or not": ("[2, 3]", ".35 .4 2 0 0 0"),
    "one point": ("[1, 2]", ".5 .5"),
    "a person": ("[17, 3]", " ".join([".5 .5 1"] * 17)),
}


@pytest.mark.parametrize("kind", POSE)
def test_rows_with_key_points(tmp_path, paths, kind):
    """What data.yaml declares says what a row is: a box and its points, not a polygon."""
    shape, points = POSE[kind]
    yaml = f"kpt_shape: {shape}\nnames: [cat, dog]\n"
    root = yolo(tmp_path / "root", {"a.jpg": f"{ROW} {points}\n1 .5 .5 .5 .5\n"}, yaml)
    paths.see(root, {"images/all/a.jpg": seen([thing(), thing("dog", (12, 8, 36, 24))])})


@pytest.mark.parametrize("row", [f"{ROW} .1", f"{ROW} .1 .1 .1", f"{ROW} .1 .1 .1 .1 .1 .1 .1"])
@pytest.mark.parametrize("declared", ["", "kpt_shape: [3, 2]\n"])
def test_rows_that_fit_nothing_are_said(tmp_path, paths, row, declared):
    root = yolo(tmp_path / "root", {"a.jpg": f"{ROW}\n{row}\n"}, f"{declared}names: [cat, dog]\n")
    paths.refuse(root, "labels/all/a.txt", "line 2", f"{len(row.split())} numbers")


@pytest.mark.parametrize("shape", ["3", "[3]", "[3, 4]", "[0, 2]", "[-1, 2]", "[a, b]", "[3, 2, 1]", "[1.5, 2]"])
def test_a_broken_declaration_is_said(tmp_path, paths, shape):
    root = yolo(tmp_path / "root", {"a.jpg": ROW}, f"kpt_shape: {shape}\nnames: [cat, dog]\n")
    paths.refuse(root, "data.yaml", "kpt_shape")


def test_polygons_stay_polygons(tmp_path, paths):
    root = yolo(tmp_path / "root", {"a.jpg": "0 .25 .25 .75 .25 .75 .75 .5 1 .25 .75\n"})
    paths.see(root, {"images/all/a.jpg": seen(thing(box=(12, 8, 36, 32)))})
