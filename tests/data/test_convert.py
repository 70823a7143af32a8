"""Round trips between the formats lose nothing; what is found by itself; batches and scores are the same in all."""

import itertools
import json
import os
import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detkit.cli import run_command
from detkit.config import DataConfig, TrainConfig
from detkit.data.check import check_root
from detkit.data.convert import convert
from detkit.data.formats import DATASETS, find_format, find_splits, open_root
from detkit.data.loader import test_loader as make_test_loader
from detkit.data.loader import train_loader
from detkit.data.opening import open_dataset, split_names
from detkit.errors import UserError
from detkit.structures import InputSpec
from tests.data.roots import make_root, random_image, xml

FORMATS = ("voc", "coco", "yolo")


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """Overlapping splits; a blank and accents in a name; no objects, flags, corners between pixels, a class of two
    words."""
    annotations = {
        "a b é": xml([("cat", (1, 1, 60, 40)), ("big dog", (11, 12, 20, 22), 1, 1)]),
        "b": xml([]),
        "c": xml([("cat", ("12.5", 3, "14.25", 4), 1, 0), ("cat", (2, 2, 3, 3), 0, 1)]),
        "d": xml([("x &lt; y &amp; z", (7, 8, 9, 10))]),
    }
    splits = {"train": ["a b é", "b"], "val": ["c", "d"], "trainval": ["a b é", "b", "c", "d"]}
    return make_root(tmp_path / "voc", annotations, splits)


def content(root: Path, split: str) -> dict:
    """All that must survive, by image."""
    data = open_root(root, [split])
    found = {}
    for i, name in enumerate(data.ids):
        record = data.record(i)
        own = record.annotations
        objects = [
            (data.classes[label], *map(bool, flags), [round(float(v), 3) for v in box], round(float(area), 3))
            for label, box, area, *flags in zip(
                own.labels, own.boxes, own.area, own.difficult, own.crowd, own.truncated
            )
        ]
        found[name] = (objects, record.width, record.height, record.path.read_bytes())
    return found


@pytest.mark.parametrize(("first", "second"), [*itertools.permutations(FORMATS, 2)])
def test_round_trips(voc_root, tmp_path, first, second):
    """VOC -> first -> second -> first; so all six directions occur."""
    start = voc_root
    if first != "voc":
        start = tmp_path / "start"
        convert(voc_root, start, first)
    convert(start, tmp_path / "there", second)
    convert(tmp_path / "there", tmp_path / "back", first)
    for root in (start, tmp_path / "there", tmp_path / "back"):
        assert set(find_splits(root)) == {"train", "val", "trainval"}
        assert check_root(root).problems == []
        for split in ("train", "val", "trainval"):
            assert content(root, split) == content(voc_root, split)
            assert open_root(root, [split]).classes == open_root(voc_root, [split]).classes
    assert find_format(tmp_path / "there") == second


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_crowds_and_areas_survive(tmp_path, to):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    random_image(root / "images" / "a.jpg")
    objects = [
        {"id": 1, "bbox": [1.37, 2.21, 30.06, 20.93], "area": 123.4567, "iscrowd": 1},
        {"id": 2, "bbox": [0, 0, 60, 40], "area": 2400},
        {"id": 3, "bbox": [5, 5, 5, 5]},
    ]
    whole = {
        "images": [{"id": 900, "file_name": "a.jpg", "width": 60, "height": 40}],
        "annotations": [{"image_id": 900, "category_id": 44, **item} for item in objects],
        "categories": [{"id": 44, "name": "cat"}, {"id": 90, "name": "never seen"}],
    }
    (root / "annotations" / "instances_train.json").write_text(json.dumps(whole))
    convert(root, tmp_path / "there", to)
    convert(tmp_path / "there", tmp_path / "back", "coco")
    assert content(tmp_path / "there", "train") == content(root, "train") == content(tmp_path / "back", "train")
    again = json.loads((tmp_path / "back" / "annotations" / "instances_train.json").read_text())
    assert [(item["bbox"], item["area"], item["iscrowd"]) for item in again["annotations"]] == [
        ([1.37, 2.21, 30.06, 20.93], 123.4567, 1),
        ([0, 0, 60, 40], 2400, 0),
        ([5, 5, 5, 5], 25, 0),
    ]
    # VOC knows no class without objects
    assert [c["name"] for c in again["categories"]] == ["cat", "never seen"][: 1 if to == "voc" else 2]


@pytest.mark.parametrize("name", ["x\ud800y", "x\x01y"])
@pytest.mark.parametrize("to", FORMATS)
def test_class_names_of_any_characters_survive_or_are_said(tmp_path, to, name):
    """JSON and YAML have escapes for what is no UTF-8, and for control characters; XML has none."""
    root = tmp_path / "yolo"
    (root / "images" / "train").mkdir(parents=True)
    (root / "labels" / "train").mkdir(parents=True)
    random_image(root / "images" / "train" / "a.jpg")
    (root / "labels" / "train" / "a.txt").write_text("0 .5 .5 .2 .2\n")
    (root / "data.yaml").write_text("names: [" + json.dumps(name) + "]\ntrain: images/train\n")
    if to == "voc":
        with pytest.raises(UserError, match="has a character that XML cannot hold"):
            convert(root, tmp_path / "there", to)
        assert not (tmp_path / "there").exists()
    else:
        convert(root, tmp_path / "there", to)
        assert open_root(tmp_path / "there", ["train"]).classes == (name,)


edge = st.one_of(st.integers(0, 5000).map(float), st.integers(0, 500_000).map(lambda v: v / 100))


@given(st.lists(st.tuples(edge, edge, edge, edge), max_size=5), st.integers(5001, 9999), st.integers(5001, 9999))
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_boxes_survive_to_a_thousandth_of_a_pixel(tmp_path_factory, edges, width, height):
    folder = tmp_path_factory.mktemp("boxes")
    boxes = [(min(a, b), min(c, d), max(a, b) + 1, max(c, d) + 1) for a, b, c, d in edges]
    objects = [("x", (left + 1, top + 1, right, bottom)) for left, top, right, bottom in boxes]
    root = make_root(folder / "voc", {"a": xml(objects, size=(width, height))}, {"all": ["a"]}, image_files=False)
    # a stored size without its pixels: only the header is read
    blank = cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes()
    header = bytearray(blank)
    header[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    (root / "JPEGImages" / "a.png").write_bytes(bytes(header))
    for number, path in enumerate((("coco", "yolo", "voc"), ("yolo", "coco", "voc"))):
        last = root
        for to in path:
            convert(last, folder / f"{number}{to}", to, images="symlink", outside=True)
            last = folder / f"{number}{to}"
            found = open_root(last, ["all"]).record(0).annotations.boxes
            np.testing.assert_allclose(found, np.array(boxes, np.float32).reshape(-1, 4), atol=1e-3)
            whole = np.array([float(v).is_integer() for box in boxes for v in box], bool).reshape(-1, 4)
            np.testing.assert_array_equal(found[whole], np.array(boxes, np.float32).reshape(-1, 4)[whole])
    shutil.rmtree(folder)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_a_image_that_its_annotation_saw_unturned(tmp_path, orientation):
    """In YOLO, whose tools turn images, the box goes with the image: it is still about the same pixels."""
    root = make_root(tmp_path / "voc", {"a": xml([("x", (1, 1, 10, 20))])}, {"all": ["a"]})
    shade = 2 * np.arange(60) + 3 * np.arange(40)[:, None]  # differs in every corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(shade.astype(np.uint8)).save(root / "JPEGImages" / "a.jpg", exif=exif)
    pixels = open_root(root, ["all"]).image(0)[:20, :10]
    convert(root, tmp_path / "yolo", "yolo")
    data = open_root(tmp_path / "yolo", ["all"])
    left, top, right, bottom = data.record(0).annotations.boxes[0].round().astype(int).tolist()
    found = data.image(0)[top:bottom, left:right]
    assert sorted(found.shape[:2]) == [10, 20]
    assert found.mean() == pytest.approx(pixels.mean(), abs=3)


def foreign(kind: str, root: Path, secret: Path) -> None:
    """A data set with an image that is not in it."""
    make_root(root, {"a": xml([]), "b": xml([])}, {"train": ["a", "b"]})
    if kind == "link":
        (root / "JPEGImages" / "b.jpg").unlink()
        (root / "JPEGImages" / "b.jpg").symlink_to(secret)
        return
    convert(root, root / "coco", "coco")
    named = {"..": "../../../secret.jpg", "absolute": str(secret)}[kind]
    path = root / "coco" / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace('"b.jpg"', json.dumps(named)))


@pytest.mark.parametrize("how", ["link", "copy", "symlink"])
@pytest.mark.parametrize("kind", ["link", "..", "absolute"])
def test_images_outside_of_a_data_set_come_along_when_told(tmp_path, capsys, kind, how):
    secret = tmp_path / "secret.jpg"
    random_image(secret)
    foreign(kind, tmp_path / "root", secret)
    source = tmp_path / "root" if kind == "link" else tmp_path / "root" / "coco"
    command = ["convert", str(source), "--to", "yolo", "--out", str(tmp_path / "out"), "--images", how]
    assert run_command("dataset", command) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith(f"leads out of {source}, to {secret}; --outside lets such images come along")
    assert not (tmp_path / "out").exists()
    assert run_command("dataset", [*command, "--outside"]) == 0
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 2


@pytest.mark.parametrize("to", FORMATS)
def test_a_split_whose_name_no_file_can_have_is_written_under_a_shorter_one(voc_root, tmp_path, to):
    convert(voc_root, tmp_path / "yolo", "yolo", splits=["train"])
    path = tmp_path / "yolo" / "data.yaml"
    path.write_text(path.read_text().replace("train:", f"{'9' * 400}:"))
    convert(tmp_path / "yolo", tmp_path / "out", to)
    (split,) = find_splits(tmp_path / "out")
    assert split.startswith("99999")
    assert len(open_root(tmp_path / "out", [split])) == 2


def test_images_are_linked_copied_or_symlinked(voc_root, tmp_path):
    original = voc_root / "JPEGImages" / "b.jpg"
    for how in ("link", "copy", "symlink"):
        convert(voc_root, tmp_path / how, "coco", images=how)
        new = tmp_path / how / "images" / "b.jpg"
        assert new.read_bytes() == original.read_bytes()
        assert (os.stat(new).st_ino == os.stat(original).st_ino) == (how != "copy")
        assert new.is_symlink() == (how == "symlink")


def test_nothing_is_half_written(voc_root, tmp_path, capsys):
    (voc_root / "JPEGImages" / "d.jpg").unlink()
    command = ["convert", str(voc_root), "--to", "coco", "--out", str(tmp_path / "out")]
    assert run_command("dataset", command) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: no image {voc_root}/JPEGImages/d.jpg"
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["voc"]
    assert run_command("dataset", [*command, "--split", "train"]) == 0
    assert "2 images (train 2), 2 objects, 3 classes" in capsys.readouterr().out
    assert run_command("dataset", command) == 2
    assert "is there already" in capsys.readouterr().err


def test_equal_names_in_two_folders_are_told_apart(tmp_path):
    for year, name in (("VOC2007", "cat"), ("VOC2012", "dog")):
        make_root(tmp_path / year, {"000001": xml([(name, (1, 1, 9, 9))])}, {"trainval": ["000001"]})
    convert(tmp_path, tmp_path / "out", "yolo", ["VOC2007/trainval", "VOC2012/trainval"])
    data = open_root(tmp_path / "out", ["VOC2007_trainval", "VOC2012_trainval"])
    assert data.classes == ("cat", "dog")
    assert data.ids == ("000001", "VOC2012_trainval_000001")
    assert data.truth().labels.tolist() == [0, 1]


@pytest.fixture
def three(small_root, tmp_path) -> dict[str, Path]:
    """The same data in three formats."""
    for to in ("coco", "yolo"):
        convert(small_root, tmp_path / to, to)
    return {"voc": small_root, "coco": tmp_path / "coco", "yolo": tmp_path / "yolo"}


@pytest.mark.parametrize("use", [True, False])
def test_batches_are_equal_in_all_formats(three, use):
    spec = InputSpec((32, 32))
    recipe = TrainConfig(iterations=3, batch=4, workers=0)
    batches = {}
    for kind, root in three.items():
        config = DataConfig(root=str(root), augment=["HorizontalFlip"], difficult=use)
        data = open_dataset(config, "train")
        assert isinstance(data, DATASETS[kind])
        test = make_test_loader(open_dataset(config, "test", data.classes), spec, batch=2, workers=0)
        batches[kind] = [*train_loader(data, spec, config, recipe, start=0, stop=3), *test]
    for kind in ("coco", "yolo"):
        for (images, targets), (expected, objects) in zip(batches[kind], batches["voc"], strict=True):
            assert images.ids == expected.ids
            assert torch.equal(images.pixels, expected.pixels)
            for name in ("boxes", "labels", "ignore"):
                assert torch.equal(getattr(targets, name), getattr(objects, name))


def test_crowds_are_ignored_even_where_difficult_objects_are_trained_on(three):
    path = three["coco"] / "annotations" / "instances_trainval.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    config = DataConfig(root=str(three["coco"]), difficult=True)
    loader = train_loader(
        open_dataset(config, "train"), InputSpec((32, 32)), config, TrainConfig(batch=9, workers=0), start=0, stop=1
    )
    ((_, targets),) = loader
    assert targets.ignore.sum() == 1


def test_training_and_evaluation_are_equal_in_all_formats(three, tmp_path, capsys):
    import tests.toys.toy  # noqa: F401 (registers the detector)

    scores = {}
    for kind, root in three.items():
        config = tmp_path / f"{kind}.yaml"
        config.write_text(
            f"model: {{name: toy}}\ndata: {{root: {root}}}\n"
            "train: {iterations: 2, batch: 4, lr: 0.05, workers: 0, device: cpu}\n"
        )
        assert run_command("train", [str(config), "--out", str(tmp_path / f"run-{kind}")]) == 0
        folder = tmp_path / f"run-{kind}"
        metrics = json.loads((folder / "metrics.json").read_text())
        weights = torch.load(folder / "last.pt", weights_only=True)["model"]
        out = tmp_path / f"eval-{kind}"
        assert run_command("evaluate", [str(folder / "best.pt"), "--out", str(out)]) == 0
        scores[kind] = ({key: metrics[key] for key in ("mAP", "AP", "images")}, weights, out)
    for kind in ("coco", "yolo"):
        assert scores[kind][0] == scores["voc"][0]
        assert all(torch.equal(scores[kind][1][name], value) for name, value in scores["voc"][1].items())
        assert (scores[kind][2] / "detections.json").read_text() == (scores["voc"][2] / "detections.json").read_text()
    detections = str(scores["voc"][2] / "detections.json")
    for root in three.values():
        assert run_command("evaluate", ["--detections", detections, "--dataset", str(root)]) == 0


def test_formats_are_found(three, tmp_path):
    assert {kind: find_format(root) for kind, root in three.items()} == {kind: kind for kind in FORMATS}
    (tmp_path / "empty").mkdir()
    for root, text in (
        (tmp_path / "empty", "looked for ImageSets/Main or Annotations"),
        (tmp_path / "none", "no data set at"),
        (tmp_path, "it holds coco, small, yolo: name splits as coco/SPLIT"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            find_format(root)
        assert "\n" not in str(caught.value)
    shutil.copytree(three["coco"] / "annotations", three["voc"] / "annotations")
    with pytest.raises(UserError, match=r"looks like voc and coco; say which, as in data\.format=voc"):
        find_format(three["voc"])
    with pytest.raises(UserError, match="a data set is of one format"):
        open_root(tmp_path, ["coco/test", "yolo/test"])


def test_splits_are_found(small_root, tmp_path):
    def found(*names: str, **given) -> list[list[str]]:
        shutil.rmtree(small_root / "ImageSets" / "Main")
        (small_root / "ImageSets" / "Main").mkdir()
        for name in names:
            (small_root / "ImageSets" / "Main" / f"{name}.txt").write_text("000001\n")
        data = DataConfig(root=str(small_root), **given)
        return [split_names(data, use) for use in ("train", "val", "test")]

    assert found("train", "val", "test", "other") == [["train"], ["val"], ["test"]]
    assert found("train", "val", "trainval") == [["trainval"], [], []]
    assert found("train2017", "val2017") == [["train2017"], ["val2017"], []]
    assert found("train", "valid", "test", train=["train"]) == [["train"], [], ["test"]]
    assert found("a", train=["a"], val=["b"], test=["c"]) == [["a"], ["b"], ["c"]]
    with pytest.raises(UserError, match=r"has the splits a, b; name one, as in data\.train=\[a\]"):
        found("a", "b")
    with pytest.raises(UserError, match=r"has the splits train1, train2; name one"):
        found("train1", "train2")
    with pytest.raises(
        UserError, match=r"holds no split, such as train; make them with: python tools/dataset\.py split"
    ):
        found()
