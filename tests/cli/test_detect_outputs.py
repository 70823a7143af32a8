"""detkit detect: its formats, crops, filters, odd files, times of frames, and Ctrl-C."""

import csv
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit import viz
from detkit.cli import detect as command
from detkit.cli.detect_report import COLUMNS
from detkit.config import DataConfig
from detkit.data import open_dataset
from detkit.data.dataset import DetectionDataset
from detkit.data.photo import decode_photo
from detkit.engine.sources import Video, VideoReader, video_writer
from detkit.errors import UserError
from detkit.viz.window import Window
from tests.cli.test_detect import CLASSES, clip, detect, files, one_error, photos, picture, report, weights

__all__ = ["clip", "photos", "weights"]


def found(out: str = "detections") -> dict[str, list[tuple[int, float, list[float]]]]:
    """Return what detections.json lists of each file."""
    return {
        entry["file"] + (f" {entry['frame']}" if "frame" in entry else ""): [
            (CLASSES.index(one["class"]), one["score"], one["box"]) for one in entry["detections"]
        ]
        for entry in report(out)["images"]
    }


def opened(kind: str) -> DetectionDataset:
    """Open the data set that was written, by the data sets' own reader."""
    return open_dataset(DataConfig(root=f"detections/{kind}", format=kind, test=["detected"]), "test", CLASSES)


# formats


def test_data_sets_read_back_by_our_own_readers(weights: str, photos: Path, clip: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(picture(50, 70, seed=5)).save("photos/tur ned.jpg", exif=turned)
    Image.fromarray(picture(50, 70, seed=6)).save("photos/0.gif")  # its name is taken, and readers know no GIF
    assert detect(weights, photos, clip, "--score", ".3", "--format", "json, voc,yolo") == 0
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
            assert record.labels.tolist() == [label for label, _, _ in own]
            np.testing.assert_allclose(record.boxes, [box for _, _, box in own], atol=1e-3)
            width, height = record.width, record.height
            assert dataset.image(row).shape == (height, width, 3)
            name = [*expected][row]
            if name.endswith(".jpg"):
                assert record.path.samefile(name)
                assert np.array_equal(dataset.image(row), decode_photo(Path(name)))
    # again, over what is there: the photos themselves stay as they were
    before = {path: path.read_bytes() for path in photos.iterdir()}
    Path("other").mkdir()
    Image.fromarray(picture(30, 40, seed=9)).save("other/1.jpg")
    assert detect(weights, photos / "0.jpg", "other/1.jpg", "--format", "voc,yolo") == 0
    assert Path("detections/voc/JPEGImages/1.jpg").samefile("other/1.jpg")
    assert {path: path.read_bytes() for path in photos.iterdir()} == before
    assert len(opened("voc")) == 2


def test_coco_results_are_read_by_pycocotools(weights: str, photos: Path, clip: Path) -> None:
    from pycocotools.coco import COCO

    assert detect(weights, photos, clip, "--score", ".3", "--format", "coco", "--json") == 0
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
        ("photos/1.jpg", 77, 131),
        ("photos/2.jpg", 96, 96),
    ]
    assert [entry["frame"] for entry in entries[3:]] == list(range(7))
    for entry, own in zip(entries, found().values()):
        listed = results.loadAnns(results.getAnnIds(imgIds=[entry["id"]]))
        assert [(one["category_id"] - 1, one["score"]) for one in listed] == [one[:2] for one in own]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in listed)]
        np.testing.assert_allclose(boxes, [one[2] for one in own], atol=2e-3)


def test_csv_has_a_header_and_a_line_a_detection(weights: str, photos: Path, clip: Path) -> None:
    (photos / "0.jpg").rename(photos / 'a "b", c.jpg')
    assert detect(weights, photos, clip, "--score", ".3", "--format", "csv,json") == 0
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


def test_nothing_found_is_still_whole(weights: str, photos: Path) -> None:
    assert detect(weights, photos, "--score", "1", "--format", "json,coco,csv,voc,yolo", "--crops", "cut") == 0
    assert json.loads(Path("detections/coco_results.json").read_text()) == []
    assert len(Path("detections/detections.csv").read_text().splitlines()) == 1
    assert len(opened("voc")) == 3
    assert len(opened("yolo")) == 3
    assert not Path("cut").exists()


def test_crops_are_the_pixels_of_the_boxes(weights: str, photos: Path, clip: Path) -> None:
    Image.fromarray(picture(60, 80, seed=3)).save("photos/3.png")
    assert detect(weights, "photos/3.png", "photos/0.jpg", clip, "--score", ".3", "--json", "--crops", "cut/all") == 0
    expected = found()
    crops = {str(path.relative_to("cut/all")): path for path in Path("cut/all").rglob("*.*")}
    assert len(crops) == sum(map(len, expected.values()))
    image = decode_photo(Path("photos/3.png"))
    for number, (label, _, (left, top, right, bottom)) in enumerate(expected["photos/3.png"], 1):
        crop = decode_photo(crops[f"{CLASSES[label]}/3-{number}.png"])
        whole = image[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
        assert np.array_equal(crop, whole)
    assert f"{CLASSES[expected['clip.avi 6'][0][0]]}/clip-000006-1.jpg" in crops


# filters


def test_classes_and_their_thresholds(weights: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect(weights, photos, "--score", ".3", "--json") == 0
    labels = [label for own in found().values() for label, _, _ in own]
    best = max(set(labels), key=labels.count)
    name = CLASSES[best]
    assert detect(weights, photos, "--score", ".3", "--json", "--classes", name) == 0
    only = found()
    assert {label for own in only.values() for label, _, _ in own} == {best}
    cut = sorted(score for own in only.values() for _, score, _ in own)[-2] - 1e-4
    assert detect(weights, photos, "--score", f".9999,{name}={cut}", "--json") == 0
    assert [one for own in found().values() for one in own] == [
        one for own in only.values() for one in own if one[1] > cut
    ]
    assert report()["class_scores"] == {name: pytest.approx(cut)}
    assert f"score >= 0.9999, {name} >= {cut:g}" in capsys.readouterr().out


def test_soft_nms_and_views(weights: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = []
    for options in ([], ["--soft-nms", "gaussian"], ["--flip"], ["--scales", "1"], ["--scales", "1,.5"]):
        assert detect(weights, photos, "--score", ".3", "--json", *options) == 0
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
        (["--classes", ","], "the list of wanted classes is empty"),
        (["--score", ".5,quen=.3"], "no class 'quen'; did you mean 'queen'?"),
        (["--score", "1.5"], "score 1.5 is not between 0 and 1"),
        (["--score", ".5,ace=-1"], "score -1 of class ace is not between 0 and 1"),
        (["--scales", "1,2"], "scale 2 is above 1"),
        (["--scales", "0"], "detect.scales: 0 is not between 0.1 and 10"),
        (["--crops", "text"], "--crops text: text is a file"),
        (["--crops", "."], "--crops .: sources are in it"),
        (["--show"], "no display to show pictures on (DISPLAY is not set)"),
    ],
)
def test_wrong_input(
    weights: str,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    Path("text").write_text("text")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert detect(weights, photos, *arguments) == 2
    assert words in one_error(capsys)
    assert files() == []


@pytest.mark.parametrize("arguments", [["--format", "xml"], ["--score", "a=b"], ["--scales", "x"], ["--soft-nms", "x"]])
def test_wrong_option(weights: str, photos: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        detect(weights, photos, *arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]


def test_folder_without_permission(
    weights: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        command.os, "access", lambda place, _: Path(place) != Path("shut").absolute()
    )  # root may write everywhere
    Path("shut").mkdir()
    assert detect(weights, photos, "--out", "shut/a/b") == 2
    assert one_error(capsys) == f"error: --out shut/a/b: no permission to write in {Path('shut').absolute()}"


# odd files


def black_png(width: int, height: int) -> bytes:
    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(width + 1)) for _ in range(height)) + packed.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def write_odd(folder: Path, kind: str) -> tuple[str, tuple[int, int] | str]:
    """Write a file, return its name, and the (width, height) it must be seen at, or why it cannot be."""
    colour = picture(40, 60)
    image = Image.fromarray(colour)
    turned = Image.Exif()
    turned[0x0112] = 6
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:, :30] = 0
    clear = Image.fromarray(np.dstack([colour, alpha]))
    others = [Image.fromarray(np.full_like(colour, value)) for value in (10, 200)]
    animated = {"save_all": True, "append_images": others, "duration": 100}
    name, size = f"{kind}.png", (60, 40)
    match kind:
        case "grey":
            image.convert("L").save(folder / name)
        case "sixteen":
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / name)
        case "palette":
            image.quantize(16).save(folder / name)
        case "palette clear":
            image.quantize(16).save(folder / name, transparency=0)
        case "clear":
            clear.save(folder / name)
        case "cmyk":
            image.convert("CMYK").save(folder / (name := "cmyk.jpg"))
        case "turned":
            image.save(folder / (name := "turned.jpg"), exif=turned)
            size = (40, 60)
        case "gif" | "webp":
            image.save(folder / (name := f"animated.{kind}"), **animated)
        case "UPPER":
            image.save(folder / (name := "UPPER.JPG"), "JPEG")
        case "unicode":
            image.save(folder / (name := "Köln 東京 \N{CAT} 1.jpg"))
        case "no utf-8":
            name = os.fsdecode(b"caf\xe9.jpg")
            image.save(folder / name)
        case "another suffix":
            image.save(folder / (name := "png.jpg"), "PNG")
        case "empty":
            (folder / (name := "empty.jpg")).touch()
            size = "empty file"
        case "text":
            (folder / (name := "page.jpg")).write_text("<html>not found</html>")
            size = "corrupt or truncated image"
        case "truncated jpeg" | "truncated png" | "truncated webp" | "truncated gif":
            suffix = kind.split()[1]
            image.save(folder / (name := f"cut.{suffix}"))
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) * 2 // 3])
            size = "corrupt or truncated image"
        case "huge":
            (folder / name).write_bytes(black_png(20000, 20000))
            size = "too large, above 178,956,970 pixels"
    return name, size


ODD = (
    *("grey", "sixteen", "palette", "palette clear", "clear", "cmyk", "turned", "gif", "webp", "UPPER", "unicode"),
    *("no utf-8", "another suffix", "empty", "text", "truncated jpeg", "truncated png", "truncated webp"),
    "truncated gif",
)


@pytest.mark.parametrize("kind", ODD)
def test_odd_file_among_others(weights: str, photos: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    name, size = write_odd(photos, kind)
    (photos / "notes.txt").write_text("not looked at")
    broken = isinstance(size, str)
    status = detect(weights, photos, "--score", ".3", "--format", "json,coco,csv,voc,yolo", "--crops", "cut")
    captured = capsys.readouterr()
    assert status == (1 if broken else 0)
    entries = {entry["file"]: entry for entry in report()["images"]}
    assert len(entries) == (3 if broken else 4)
    if broken:
        assert captured.err.splitlines() == [f"error: photos/{name}: {size}"]
        assert "1 of 4 sources damaged" in captured.out.splitlines()[-1]
        return
    assert captured.err == ""
    entry = entries[f"photos/{name}"]
    assert (entry["width"], entry["height"]) == size
    drawn = decode_photo(Path("detections", entry["drawn"]))
    assert drawn.shape[1::-1] == size
    assert Path(name).stem == Path(entry["drawn"]).stem
    # one transparency, one animation's picture, one orientation for the reader of data sets and for detection
    read = opened("voc")
    row = [*entries].index(f"photos/{name}")
    assert np.array_equal(read.image(row), decode_photo(photos / name))
    if kind in ("gif", "webp"):
        assert np.abs(decode_photo(photos / name).astype(int) - picture(40, 60)).mean() < 30  # the first, not 10 or 200
    if kind == "clear":
        assert (read.image(row)[:, :30] == 255).all()


def test_huge_picture_is_one_line(weights: str, photos: Path) -> None:
    """In a process of its own, since OpenCV reads its limit when it is imported."""
    _, reason = write_odd(photos, "huge")
    code = (
        "import sys, resource; from detkit.cli import run_command\n"
        "status = run_command('detect', sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10); sys.exit(status)"
    )
    arguments = [sys.executable, "-c", code, weights, "photos"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: photos/huge.png: {reason}\n")
    assert int(done.stdout.split()[-1]) < 1100  # MiB; its pixels alone would be 1145


def test_transparency_where_the_annotation_leaves_the_orientation_out(tmp_path: Path) -> None:
    colour, alpha = picture(40, 60), np.full((40, 60), 255, np.uint8)
    alpha[:, :20] = 0
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.dstack([colour, alpha])).save(tmp_path / "x.png", exif=turned)
    stored = decode_photo(tmp_path / "x.png", (60, 40))
    assert stored.shape == (40, 60, 3)
    assert (stored[:, :20] == 255).all()
    assert np.array_equal(np.rot90(stored, -1), decode_photo(tmp_path / "x.png"))


# videos


def uneven(path: Path, gaps: list[int]) -> None:
    """Write an MP4 of frames that are so many 1/20 s apart; green tells the number of each."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 20, (64, 48))
    for number in range(len(gaps)):
        writer.write(np.full((48, 64, 3), (0, 25 * number, 0), np.uint8))
    writer.release()

    def rebuild(data: bytes) -> bytes:
        out, place = b"", 0
        while place < len(data):
            size, kind = struct.unpack(">I4s", data[place : place + 8])
            content = data[place + 8 : place + size]
            place += size
            if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
                content = rebuild(content)
            elif kind == b"stts":
                unit = struct.unpack(">I", content[-4:])[0]
                content = struct.pack(">II", 0, len(gaps)) + b"".join(struct.pack(">II", 1, gap * unit) for gap in gaps)
            elif kind == b"edts":
                continue  # an edit list would cut the longer film
            out += struct.pack(">I4s", 8 + len(content), kind) + content
        return out

    path.write_bytes(rebuild(path.read_bytes()))


def greens(path: Path) -> list[tuple[float, int]]:
    """(seconds, number) of each frame."""
    with VideoReader(Video(path)) as reader:
        return [(round(seconds, 3), round(frame[..., 1].mean() / 25)) for frame, seconds in reader.timed()]


def test_uneven_frames_keep_their_times(weights: str, photos: Path) -> None:
    gaps = [1, 1, 3, 1, 4, 2, 5, 1]
    due = [0, 1, 2, 5, 6, 10, 12, 17]
    uneven(Path("vfr.mp4"), gaps)
    assert greens(Path("vfr.mp4")) == [(n / 20, number) for number, n in enumerate(due)]
    assert detect(weights, "vfr.mp4", "--score", "1", "--json", "--batch", 3) == 0
    assert [entry["seconds"] for entry in report()["images"]] == [n / 20 for n in due]
    shown = greens(Path("detections/vfr.mp4"))
    with VideoReader(Video(Path("detections/vfr.mp4"))) as reader:
        step = 1 / reader.fps
    for number, n in enumerate(due):  # at each frame's own time, to half a step, it or its neighbour in one step shows
        at = min(shown, key=lambda one: abs(one[0] - n / 20))
        assert abs(at[0] - n / 20) <= step / 2 + 1e-3
        assert abs(at[1] - number) <= 1
    assert shown[-1][0] == pytest.approx(due[-1] / 20, abs=step / 2 + 1e-3)


@pytest.mark.parametrize("fps", [29.97, 30000 / 1001, 23.976, 59.94, 7.123456, 100.123, 119.88, 0.5])
def test_odd_rates_keep_their_pace(tmp_path: Path, fps: float) -> None:
    frame = picture(48, 64)
    with video_writer(tmp_path / "x.mp4", fps, (48, 64)) as append:
        for number in range(200):
            append(frame, number / fps)
    with VideoReader(Video(tmp_path / "x.mp4")) as reader:
        assert reader.fps == pytest.approx(fps, rel=2e-3)
        *_, (_, last) = reader.timed()
    assert last == pytest.approx(199 / fps, abs=1 / fps)


# Ctrl-C


def press_at(monkeypatch: pytest.MonkeyPatch, drawn: int) -> None:
    draw, count = viz.draw, []

    def pressed(*arguments, **keys):
        count.append(1)
        if len(count) == drawn:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(*arguments, **keys)

    monkeypatch.setattr(viz, "draw", pressed)


@pytest.mark.parametrize("source", ["many", "clip.avi"])
def test_interruption_leaves_whole_files(
    weights: str, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    Path("many").mkdir()
    for number in range(60):
        Image.fromarray(picture(20, 30, seed=number)).save(f"many/{number:02d}.jpg")
    press_at(monkeypatch, 3)
    formats = ["--format", "json,coco,csv,voc,yolo"]
    assert detect(weights, source, "--batch", 2, "--score", ".3", *formats) == 130
    assert "interrupted after " in one_error_line(capsys)
    done = len(report()["images"])
    assert 0 < done < (60 if source == "many" else 7)
    assert len(json.loads(Path("detections/coco_images.json").read_text())["images"]) == done
    for kind in ("voc", "yolo"):
        assert len(opened(kind)) == done
    if source == "many":
        assert all(cv2.imread(str(path)) is not None for path in Path("detections").glob("*.jpg"))
        assert len([*Path("detections").glob("*.jpg")]) == done
    else:
        assert cv2.VideoCapture("detections/clip.mp4").get(cv2.CAP_PROP_FRAME_COUNT) == done
    assert not [path for path in Path("detections").rglob(".*") if not path.name.startswith(".detkit-index")]


def one_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    return line


# the window


class Screen:
    """Stands for tkinter; closes its window after the second picture."""

    TclError = RuntimeError

    def __init__(self) -> None:
        self.shown = 0
        self.actions: dict[str, object] = {}

    def Tk(self) -> "Screen":
        return self

    def Label(self, _root: "Screen") -> "Screen":
        return self

    def __getattr__(self, name: str) -> object:
        return lambda *_, **__: 500

    def bind(self, key: str, action: object) -> None:
        self.actions[key] = action

    def update(self) -> None:
        self.shown += 1
        if self.shown == 2:
            self.actions["q"](None)  # pyright: ignore[reportCallIssue]


def test_closing_the_window_ends_the_work(
    weights: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import ImageTk

    screen = Screen()
    monkeypatch.setenv("DISPLAY", ":77")
    monkeypatch.setitem(sys.modules, "tkinter", screen)
    monkeypatch.setattr(ImageTk, "PhotoImage", lambda picture, master: picture)
    assert detect(weights, photos, "--show", "--json") == 130
    assert screen.shown == 2
    assert len(report()["images"]) == 2
    assert "interrupted after 2 of 3 sources" in one_error_line(capsys)


def test_no_window_where_there_is_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":98765")
    with pytest.raises(UserError, match="no display to show pictures on"):
        Window("x")
