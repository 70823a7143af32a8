"""The VOC reader: what it reads, what it refuses, and its index."""

import os
import re
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from detkit.config import DataConfig
from detkit.data import index, voc_index
from detkit.data.dataset import notes_on, parse_splits
from detkit.data.opening import open_dataset
from detkit.data.voc import VOC_CLASSES, VOCDataset
from detkit.errors import UserError
from tests.data.roots import make_root, random_image, xml

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"  # beside the checkout, where it is there at all


def refused(root: Path, text: str, split: str = "all", classes: list[str] | None = None) -> None:
    with pytest.raises(UserError, match=re.escape(text)) as caught:
        VOCDataset([(root, split)], classes)
    assert "\n" not in str(caught.value)


def test_reads_boxes_labels_and_flags(one):
    root = one([("dog", (1, 1, 60, 40)), ("cat", (11, 12, 20, 22), 1, 1), ("cat", ("12.5", 3, 14.5, 4))])
    data = VOCDataset([(root, "all")])
    assert data.classes == ("cat", "dog")
    assert (len(data), data.ids, data.name) == (1, ("a",), "one/all")
    record = data.record(0)
    np.testing.assert_array_equal(record.annotations.boxes, [(0, 0, 60, 40), (10, 11, 20, 22), (11.5, 2, 14.5, 4)])
    assert record.annotations.boxes.dtype == np.float32
    assert record.annotations.labels.tolist() == [1, 0, 0]
    assert record.annotations.difficult.tolist() == [False, True, False]
    assert record.annotations.truncated.tolist() == [False, True, False]
    assert (record.width, record.height, record.path.name) == (60, 40, "a.jpg")
    assert data.image(0).shape == (40, 60, 3)


def test_truth_is_flat_and_needs_no_images(tmp_path):
    files = {
        "b": xml([("x", (1, 1, 2, 2), 1, 0)]),
        "a": xml([]),
        "c": xml([("y", (3, 3, 9, 9)), ("x", (2, 2, 3, 3))]),
    }
    root = make_root(tmp_path / "d", files, {"all": ["c", "a", "b"]}, image_files=False)
    (root / "JPEGImages").rmdir()
    truth = VOCDataset([(root, "all")]).truth()
    assert truth.ids == ("c", "a", "b")
    assert truth.image.tolist() == [0, 0, 2]
    assert truth.labels.tolist() == [1, 0, 0]
    assert truth.ignore.tolist() == [False, False, True]
    assert truth.boxes.tolist() == [[2, 2, 9, 9], [1, 1, 3, 3], [0, 0, 2, 2]]


def test_several_years_at_once(tmp_path):
    for year, name in (("VOC2007", "cat"), ("VOC2012", "dog")):
        files = {"000001": xml([(name, (1, 1, 9, 9))]), "000002": xml([])}
        make_root(tmp_path / year, files, {"trainval": ["000001"], "test": ["000002"]})
    config = DataConfig(root=str(tmp_path), train=["VOC2007/trainval", "VOC2012/trainval"], test=["VOC2007/test"])
    train = open_dataset(config, "train")
    assert train.ids == ("VOC2007/000001", "VOC2012/000001")
    assert train.truth().labels.tolist() == [0, 1]
    assert open_dataset(config, "test", train.classes).ids == ("000002",)
    with pytest.raises(UserError, match=r"name splits as VOC2007/SPLIT"):
        VOCDataset(parse_splits(tmp_path, ["trainval"]))
    with pytest.raises(UserError, match=r"data\.val is empty"):
        open_dataset(config, "val")


def test_boxes_beyond_the_image_are_clipped(one):
    data = VOCDataset([(one([("x", (-3, 0, 70, 41))]), "all")])
    np.testing.assert_array_equal(data.record(0).annotations.boxes, [(0, 0, 60, 40)])


def test_the_image_clips_where_the_xml_states_no_size(one):
    root = one([("x", (5, 5, 70, 41))], size=None)
    record = VOCDataset([(root, "all")]).record(0)
    np.testing.assert_array_equal(record.annotations.boxes, [(4, 4, 60, 40)])
    assert (record.width, record.height) == (60, 40)
    (root / "JPEGImages" / "a.jpg").unlink()
    record = VOCDataset([(root, "all")]).record(0)
    np.testing.assert_array_equal(record.annotations.boxes, [(4, 4, 70, 41)])
    assert record.width == 0


@pytest.mark.parametrize(
    ("objects", "text"),
    [
        ([("x", (1, 1, 9, 9)), ("x", (9, 1, 8, 9))], "Annotations/a.xml: object 2: x: xmax 8 < xmin 9"),
        ([("x", (1, 9, 9, 8))], "a.xml: object 1: x: ymax 8 < ymin 9"),
        ([("x", (1, "wide", 9, 8))], "a.xml: object 1: x: ymin is 'wide', not a number"),
        ([("x", (1, "nan", 9, 8))], "a.xml: object 1: x: ymin is 'nan', not a number"),
        ([("x", (1, 1, 9, ""))], "a.xml: object 1: x: ymax is '', not a number"),
        ([("", (1, 1, 9, 9))], "a.xml: object 1: no <name>"),
        ([("x", (1, 1, 9, 9)), ("x", (61, 1, 90, 9))], "a.xml: object 2: the box of this x lies outside the image"),
    ],
)
def test_broken_objects_are_named(one, objects, text):
    refused(one(objects), text)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<annotation><object>", "a.xml: not valid XML: no element found (line 1"),
        ("", "a.xml: not valid XML: no element found"),
        ("<html></html>", "a.xml: not a VOC annotation: the outer element is <html>"),
        ("<annotation><object><name>x</name></object></annotation>", "a.xml: object 1: x: no <bndbox>"),
    ],
)
def test_broken_files_are_named(one, content, text):
    root = one([])
    (root / "Annotations" / "a.xml").write_text(content)
    refused(root, text)


def test_a_broken_file_outside_the_split_does_no_harm(small_root):
    (small_root / "Annotations" / "broken.xml").write_text("<")
    assert len(VOCDataset([(small_root, "trainval")])) == 9


def test_classes(one):
    root = one([("dog", (1, 1, 9, 9)), ("cat", (1, 1, 9, 9))])
    assert VOCDataset([(root, "all")], ["dog", "cow", "cat"]).record(0).annotations.labels.tolist() == [0, 2]
    refused(
        root,
        "Annotations/a.xml: object 2: class 'cat' is not in data.classes; did you mean 'cart'?",
        "all",
        ["dog", "cart"],
    )
    refused(root, "a class is named twice", "all", ["dog", "dog"])
    assert sorted(VOC_CLASSES) == list(VOC_CLASSES)


def test_missing_things_are_named(tmp_path, small_root):
    refused(tmp_path / "VOCdevkit" / "VOC2007", "fetch it with: python tools/dataset.py fetch voc07")
    refused(tmp_path / "data" / "VOC2012", "python tools/dataset.py fetch voc12")
    refused(tmp_path / "mine", "lay it out as ROOT/JPEGImages")
    refused(small_root, "no split 'trainvall'", "trainvall")
    refused(small_root, "did you mean 'trainval'?", "trainvall")
    refused(small_root, "known: test, trainval", "q")
    (small_root / "ImageSets" / "Main" / "none.txt").write_text("\n \n")
    refused(small_root, "none.txt: the split is empty", "none")
    (small_root / "ImageSets" / "Main" / "more.txt").write_text("000001\nzebra\n")
    refused(small_root, "no annotation", "more")
    (small_root / "ImageSets" / "Main" / "twice.txt").write_text("000001\n000001\n")
    refused(small_root, "Main/twice.txt: image JPEGImages/000001.jpg is listed twice", "twice")
    (small_root / "ImageSets" / "Main" / "binary.txt").write_bytes(b"\xff\xfe\x00")
    refused(small_root, "binary.txt: not a text file", "binary")
    with pytest.raises(UserError, match="no split of the data set"):
        VOCDataset([])


def test_split_lines(tmp_path):
    files = {"my image": xml([]), "000001": xml([])}
    root = make_root(tmp_path / "d", files, {"all": []})
    (root / "ImageSets" / "Main" / "all.txt").write_bytes(b"\xef\xbb\xbfmy image\r\n000001 -1\r\n\r\n")
    assert VOCDataset([(root, "all")]).ids == ("my image", "000001")


def test_image_is_found_by_id_then_by_filename(tmp_path):
    files = {"a": xml([], filename="b.jpg"), "c": xml([], filename="C:\\images\\other.png"), "d": xml([])}
    root = make_root(tmp_path / "d", files, {"all": list(files)}, image_files=False)
    for name in ("a.jpeg", "b.jpg", "other.png"):
        random_image(root / "JPEGImages" / name)
    data = VOCDataset([(root, "all")])
    assert [data.record(i).path.name for i in range(3)] == ["a.jpeg", "other.png", "d.jpg"]
    with pytest.raises(UserError, match=r"no image .*d\.jpg"):
        data.image(2)


def test_pixels_are_rgb(one):
    root = one([])
    red = np.zeros((40, 60, 3), np.uint8)
    red[..., 2] = 255  # cv2 writes BGR
    cv2.imwrite(str(root / "JPEGImages" / "a.jpg"), red)
    assert (VOCDataset([(root, "all")]).image(0).mean((0, 1)) > 200).tolist() == [True, False, False]


def rotated(path: Path, orientation: int) -> None:
    """Write a JPEG of 60x40 stored pixels, left half dark, with an EXIF orientation."""
    from PIL import Image

    pixels = np.full((40, 60, 3), 220, np.uint8)
    pixels[:, :30] = 20
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def test_exif_orientation_is_applied_whatever_the_xml_states(one, tmp_path):
    root = one([], size=(40, 60))  # annotated upright
    rotated(root / "JPEGImages" / "a.jpg", 6)  # to be shown turned by 90 degrees clockwise: dark on top
    image = VOCDataset([(root, "all")]).image(0)
    assert image.shape == (60, 40, 3)
    assert image[:25].mean() < 60 < 180 < image[35:].mean()
    (root / "Annotations" / "a.xml").write_text(xml([], size=(60, 40)))  # the size of the stored pixels
    data = VOCDataset([(root, "all")])
    np.testing.assert_array_equal(data.image(0), image)
    assert data.sizes.tolist() == [[40, 60]]
    assert any("the image is 40x60, its annotation says 60x40" in note for note in notes_on([data]))


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "folder"])
def test_corrupt_image_is_named(one, damage):
    root = one([])
    path = root / "JPEGImages" / "a.jpg"
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes({"text": b"not an image", "empty": b"", "truncated": data[: len(data) * 2 // 3]}[damage])
    with pytest.raises(UserError, match=r"JPEGImages/a\.jpg: "):
        VOCDataset([(root, "all")]).image(0)


def test_bytes_after_the_end_of_a_jpeg_are_no_damage(one):
    root = one([])
    with open(root / "JPEGImages" / "a.jpg", "ab") as file:
        file.write(b"appended by a camera")
    assert VOCDataset([(root, "all")]).image(0).shape == (40, 60, 3)


def test_index_is_used_and_made_anew_when_files_change(small_root, monkeypatch):
    VOCDataset([(small_root, "trainval")])
    assert (small_root / index.INDEX_NAME).is_file()
    calls = []
    parse = voc_index.parse_annotation
    monkeypatch.setattr(voc_index, "parse_annotation", lambda content: calls.append(1) or parse(content))
    before = VOCDataset([(small_root, "trainval")]).truth()
    assert not calls
    path = small_root / "Annotations" / "000001.xml"
    path.write_text(path.read_text().replace("<xmax>21<", "<xmax>22<"))  # the same size
    os.utime(path, ns=(1, 1))
    after = VOCDataset([(small_root, "trainval")]).truth()
    assert len(calls) == 9
    assert (before.boxes != after.boxes).sum() == 1
    (small_root / index.INDEX_NAME).write_bytes(b"rubbish")
    assert VOCDataset([(small_root, "trainval")]).truth().boxes.equal(after.boxes)
    path.rename(path.with_name("000010.xml"))
    refused(small_root, "no annotation", "trainval")


def test_index_of_a_read_only_folder_goes_to_the_cache(small_root, tmp_path):
    small_root.chmod(0o555)
    VOCDataset([(small_root, "trainval")])
    assert not (small_root / index.INDEX_NAME).exists()
    assert len(list((tmp_path / "cache" / "detkit").glob("index-*.npz"))) == 2  # the sizes of the images, too
    assert len(VOCDataset([(small_root, "trainval")])) == 9
    small_root.chmod(0o755)


def test_reading_goes_on_without_a_place_for_the_index(small_root, tmp_path):
    small_root.chmod(0o555)
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(VOCDataset([(small_root, "trainval")])) == 9
    small_root.chmod(0o755)


@pytest.mark.skipif(not (SHARED / "voc07_test.tar.xz").is_file(), reason="VOC2007 annotations are not here")
def test_voc2007_test(tmp_path):
    with tarfile.open(SHARED / "voc07_test.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    data = VOCDataset([(tmp_path / "voc07", "test")])
    truth = data.truth()
    assert data.classes == VOC_CLASSES
    assert (len(data), len(truth.labels), int((~truth.ignore).sum())) == (4952, 14976, 12032)
