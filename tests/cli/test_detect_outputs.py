"""detkit detect: its formats, crops and filters."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detkit.cli import detect as command
from detkit.cli import detect_job
from detkit.cli.detect_report import COLUMNS
from detkit.data.image_file import decode_image
from detkit.errors import UserError
from tests.cli.detecting import CLASSES, detect, files, one_error, opened, report
from tests.proposals.sample_images import sample_image


def found(out: str = "detections") -> dict[str, list[tuple[int, float, list[float]]]]:
    """Return what detections.json lists of each file."""
    return {
        entry["file"] + (f" {entry['frame']}" if "frame" in entry else ""): [
            (CLASSES.index(one["class"]), one["score"], one["box"]) for one in entry["detections"]
        ]
        for entry in report(out)["images"]
    }


# formats


def test_data_sets_read_back_by_our_own_readers(weights: str, image_files: Path, clip: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(sample_image(50, 70, seed=5)).save("images/tur ned.jpg", exif=turned)
    Image.fromarray(sample_image(50, 70, seed=6)).save("images/0.gif")  # its name is taken, and readers know no GIF
    assert detect(weights, image_files, clip, "--score", ".3", "--format", "json, voc,yolo") == 0
    expected = found()
    assert len(expected) == 5 + 7
    for kind in ("voc", "yolo"):
        dataset = opened(kind)
        assert len(dataset) == len(expected)
        assert len(set(dataset.ids)) == len(dataset)
        for row, own in enumerate(expected.values()):
            record = dataset.record(row)
            own = [one for one in own if min(one[2][2] - one[2][0], one[2][3] - one[2][1]) >= 1]
            assert len(own) > 0
            assert record.annotations.labels.tolist() == [label for label, _, _ in own]
            np.testing.assert_allclose(record.annotations.boxes, [box for _, _, box in own], atol=1e-3)
            width, height = record.width, record.height
            assert dataset.image(row).shape == (height, width, 3)
            name = [*expected][row]
            if name.endswith(".jpg"):
                assert record.path.samefile(name)
                assert np.array_equal(dataset.image(row), decode_image(Path(name)))
    # again, over what is there: the images themselves stay as they were
    before = {path: path.read_bytes() for path in image_files.iterdir()}
    Path("other").mkdir()
    Image.fromarray(sample_image(30, 40, seed=9)).save("other/1.jpg")
    assert detect(weights, image_files / "0.jpg", "other/1.jpg", "--format", "voc,yolo") == 0
    assert Path("detections/voc/JPEGImages/1.jpg").samefile("other/1.jpg")
    assert {path: path.read_bytes() for path in image_files.iterdir()} == before
    assert len(opened("voc")) == 2


def test_coco_results_are_read_by_pycocotools(weights: str, image_files: Path, clip: Path) -> None:
    from pycocotools.coco import COCO

    assert detect(weights, image_files, clip, "--score", ".3", "--format", "coco", "--json") == 0
    assert files() == [
        "0.jpg",
        "1.jpg",
        "2.jpg",
        "clip.mp4",
        "coco_images.json",
        "coco_results.json",
        "detections.json",
    ]
    images = COCO("detections/coco_images.json")
    results = images.loadRes("detections/coco_results.json")
    assert [images.loadCats(number)[0]["name"] for number in sorted(images.cats)] == list(CLASSES)
    entries: list[Any] = list(images.imgs.values())
    assert [entry["id"] for entry in entries] == list(range(1, 11))
    assert [(e["file_name"], e["width"], e["height"]) for e in entries[1:3]] == [
        ("images/1.jpg", 77, 131),
        ("images/2.jpg", 96, 96),
    ]
    assert [entry["frame"] for entry in entries[3:]] == list(range(7))
    for entry, own in zip(entries, found().values()):
        listed = results.loadAnns(results.getAnnIds(imgIds=[entry["id"]]))
        assert [(one["category_id"] - 1, one["score"]) for one in listed] == [one[:2] for one in own]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in listed)]
        np.testing.assert_allclose(boxes, [one[2] for one in own], atol=2e-3)


def test_csv_has_a_header_and_a_line_a_detection(weights: str, image_files: Path, clip: Path) -> None:
    (image_files / "0.jpg").rename(image_files / 'a "b", c.jpg')
    assert detect(weights, image_files, clip, "--score", ".3", "--format", "csv,json") == 0
    with open("detections/detections.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*COLUMNS]
    read: dict[str, list] = {}
    for row in rows:
        box = [float(row[edge]) for edge in ("left", "top", "right", "bottom")]
        key = row["file"] + (f" {row['frame']}" if row["frame"] else "")
        read.setdefault(key, []).append((CLASSES.index(row["class"]), float(row["score"]), box))
    assert read == found()
    assert {row["seconds"] for row in rows if row["file"] == "clip.avi"} == {str(round(n / 12.5, 3)) for n in range(7)}


def test_nothing_found_is_still_whole(weights: str, image_files: Path) -> None:
    assert detect(weights, image_files, "--score", "1", "--format", "json,coco,csv,voc,yolo", "--crops", "cut") == 0
    assert json.loads(Path("detections/coco_results.json").read_text()) == []
    assert len(Path("detections/detections.csv").read_text().splitlines()) == 1
    assert len(opened("voc")) == 3
    assert len(opened("yolo")) == 3
    assert not Path("cut").exists()


def test_crops_are_the_pixels_of_the_boxes(weights: str, image_files: Path, clip: Path) -> None:
    Image.fromarray(sample_image(60, 80, seed=3)).save("images/3.png")
    assert detect(weights, "images/3.png", "images/0.jpg", clip, "--score", ".3", "--json", "--crops", "cut/all") == 0
    expected = found()
    crops = {str(path.relative_to("cut/all")): path for path in Path("cut/all").rglob("*.*")}
    assert len(crops) == sum(map(len, expected.values()))
    image = decode_image(Path("images/3.png"))
    for number, (label, _, (left, top, right, bottom)) in enumerate(expected["images/3.png"], 1):
        crop = decode_image(crops[f"{CLASSES[label]}/3-{number}.png"])
        whole = image[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
        assert np.array_equal(crop, whole)
    assert f"{CLASSES[expected['clip.avi 6'][0][0]]}/clip-000006-1.jpg" in crops


# filters


def test_classes_and_their_thresholds(weights: str, image_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect(weights, image_files, "--score", ".3", "--json") == 0
    labels = [label for own in found().values() for label, _, _ in own]
    best = max(set(labels), key=labels.count)
    name = CLASSES[best]
    assert detect(weights, image_files, "--score", ".3", "--json", "--classes", name) == 0
    only = found()
    assert {label for own in only.values() for label, _, _ in own} == {best}
    cut = sorted(score for own in only.values() for _, score, _ in own)[-2] - 1e-4
    assert detect(weights, image_files, "--score", f".9999,{name}={cut}", "--json") == 0
    assert [one for own in found().values() for one in own] == [
        one for own in only.values() for one in own if one[1] > cut
    ]
    assert report()["class_scores"] == {name: pytest.approx(cut)}
    assert f"score >= 0.9999, {name} >= {cut:g}" in capsys.readouterr().out


def test_soft_nms_and_views(weights: str, image_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = []
    for options in ([], ["--soft-nms", "gaussian"], ["--flip"], ["--scales", "1"], ["--scales", "1,.5"]):
        assert detect(weights, image_files, "--score", ".3", "--json", *options) == 0
        listed.append(found())
    assert listed[0] == listed[3]
    assert all(listed[0] != listed[other] for other in (1, 2, 4))
    out = capsys.readouterr().out
    for words in ("Gaussian soft-NMS", "at most 15 an image, mirrored too;", "at scales 1, 0.5;"):
        assert words in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--classes", "kng"], "no class 'kng'; did you mean 'king'?"),
        (["--classes", ","], "the list of classes to detect is empty"),
        (["--score", ".5,quen=.3"], "no class 'quen'; did you mean 'queen'?"),
        (["--score", "1.5"], "score 1.5 is not between 0 and 1"),
        (["--score", ".5,ace=-1"], "score -1 of class ace is not between 0 and 1"),
        (["--scales", "1,2"], "scale 2 is above 1"),
        (["--max-side", "300"], "--max-side 300: ssd needs no selective search"),
        (["--scales", "0"], "detect.scales: 0.0 is not in [0.1, 10]"),
        (["--crops", "text"], "--crops text: text is a file"),
        (["--crops", "."], "--crops .: sources are in it"),
        (["--show"], "no display to show images on (DISPLAY is not set)"),
    ],
)
def test_wrong_input(
    weights: str,
    image_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    Path("text").write_text("text")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert detect(weights, image_files, *arguments) == 2
    assert words in one_error(capsys)
    assert files() == []


@pytest.mark.parametrize("arguments", [["--format", "xml"], ["--score", "a=b"], ["--scales", "x"], ["--soft-nms", "x"]])
def test_wrong_option(
    weights: str, image_files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        detect(weights, image_files, *arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]


def test_folder_without_permission(
    weights: str, image_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        command.os, "access", lambda place, _: Path(place) != Path("shut").absolute()
    )  # root may write everywhere
    Path("shut").mkdir()
    assert detect(weights, image_files, "--out", "shut/a/b") == 2
    assert one_error(capsys) == f"error: --out shut/a/b: no permission to write in {Path('shut').absolute()}"


def test_images_that_cannot_be_written_cost_no_list(weights, image_files, monkeypatch, capsys):
    def full(path: Path, _: object) -> None:
        raise UserError(f"{path}: No space left on device, nothing written")

    monkeypatch.setattr(detect_job, "write_image", full)
    assert detect(weights, "images", "--format", "json,csv") == 1
    said = capsys.readouterr().err
    assert said.startswith("warning: not written: 3 images: detections/")
    assert said.count("\n") == 1
    assert files() == ["detections.csv", "detections.json"]
    assert len(report()["images"]) == 3


def test_a_list_that_cannot_be_completed_costs_no_other(weights, image_files, monkeypatch, capsys):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("yaml.safe_dump", full)
    assert detect(weights, "images", "--format", "json,yolo") == 1
    assert capsys.readouterr().err == "warning: not written: yolo/: No space left on device; all else is complete\n"
    assert len(report()["images"]) == 3


def test_no_images(weights: str, image_files: Path, clip: Path) -> None:
    """Lists alone; an image that is not written overwrites none, so they may lie beside the images."""
    assert detect(weights, image_files, clip, "--score", ".3", "--json") == 0
    expected, written = found(), files()
    assert all(entry["drawn"] in written for entry in report()["images"])
    assert detect(weights, image_files, clip, "--score", ".3", "--json", "--no-images", "--out", image_files) == 0
    assert found(str(image_files)) == expected
    assert {entry["drawn"] for entry in report(str(image_files))["images"]} == {None}
    assert detect(weights, image_files, clip, "--no-images", "--out", "none") == 0
    assert not Path("none").exists()


def test_profile(weights: str, image_files: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every step that there was has a line, none is longer than it can be, and nothing else changes."""
    assert detect(weights, image_files, clip, "--score", ".3", "--json") == 0
    plain = capsys.readouterr().out.splitlines()
    assert detect(weights, image_files, clip, "--score", ".3", "--json", "--profile") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(plain) + 9
    table = {line[:16].strip(): [float(value) for value in line[16:].split()] for line in lines[len(plain) + 1 :]}
    steps = ("decoding", "resizing", "network", "post-processing", "drawing", "writing", "lists")
    assert [*table] == [*steps, "by the clock"]
    *_, whole = table.values()
    assert all(seconds >= 0 for seconds, *_ in table.values())
    assert table["network"][0] + table["post-processing"][0] <= whole[0] + 0.02, "both are in one thread"
    detect(weights, image_files, "--no-images", "--profile")
    names = [line[:16].strip() for line in capsys.readouterr().out.splitlines()]
    assert "drawing" not in names
    assert "writing" not in names
