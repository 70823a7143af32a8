"""detkit detect: names of images that are long, no UTF-8, or would act on a terminal or in a list."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest

from detkit.names import LONGEST, unused_name
from tests.cli.detecting import detect, files, opened, report

NAMES = {
    "249 bytes": "n" * 245,
    "255 bytes": "n" * 251,
    "255 bytes of two a letter": "é" * 125 + "n",
    "no UTF-8": "caf\udce9",
    "line end": "a\nb",
    "escape": "a\x1b[31mb",
    "blanks": " a ",
    "formula": "=1+1",
    "number behind a blank": "a 1",
    "marks": "#a&<b>%s{0}[1],;:|~",
    "direction of text": "a\u202egnp",
}


@pytest.mark.parametrize("which", NAMES)
def test_names_that_a_file_system_takes(image_files, weights, capsys, which):
    name = f"{NAMES[which]}.jpg"
    assert len(os.fsencode(name)) <= 255
    shutil.copy(image_files / "0.jpg", image_files / name)
    arguments = ("--format", "json,coco,csv,voc,yolo", "--crops", "crops", "--out", "detections", "--score", ".3")
    assert detect(weights, image_files / name, image_files / "1.jpg", *arguments) == 0
    said = "".join(capsys.readouterr())
    assert len(said.splitlines()) == 4  # the settings, two images, the summary
    assert not any(character in said for character in ("Traceback", "\x1b", "\u202e"))
    assert sorted(one for one in files() if one.endswith(".jpg")) == sorted((name, "1.jpg"))
    assert not [path for path in Path().rglob("*") if ".tmp" in path.name]
    assert [Path(image["file"]).name for image in report()["images"]] == [name, "1.jpg"]
    images = json.loads(Path("detections/coco_images.json").read_text())["images"]
    assert [Path(image["file_name"]).name for image in images] == [name, "1.jpg"]
    for kind in ("voc", "yolo"):
        assert len(opened(kind)) == 2
        assert opened(kind).image(0).shape == (60, 90, 3)
    crops = {path.name for folder in Path("crops").iterdir() for path in folder.iterdir()}
    with Path("detections/detections.csv").open(newline="") as file:
        assert len(crops) == len(list(csv.DictReader(file)))


def test_a_table_runs_nothing_in_a_spreadsheet(image_files, weights, monkeypatch):
    monkeypatch.chdir(image_files)
    Path("0.jpg").rename("=1+1.jpg")
    assert detect(weights, "=1+1.jpg", "./1.jpg", "--format", "csv", "--score", ".3") == 0
    with Path("detections/detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {"'=1+1.jpg", "1.jpg"}
    assert all(float(row["left"]) == float(row["left"]) for row in rows)


def test_long_names_stay_apart():
    taken: set[str] = set()
    names = [unused_name(taken, stem, ".png") for stem in ("n" * 300, "n" * 300, "n" * 299 + "m", "é" * 130)]
    assert len(set(names)) == 4
    assert all(len(os.fsencode(name)) <= LONGEST and name.endswith(".png") for name in names)
