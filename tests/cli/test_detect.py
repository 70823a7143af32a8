"""detkit detect: what it writes, what it says, and how it ends."""

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit import viz
from detkit.cli.detect import drawn_names
from detkit.inference import images
from detkit.inference.sources import Video
from tests.cli.detecting import CLASSES, detect, files, one_error, report
from tests.proposals.sample_images import sample_image


def test_folder(weights: str, image_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect(weights, image_files, "--score", ".3", "--out", "found", "--json", "--batch", 2) == 0
    assert files("found") == ["0.jpg", "1.jpg", "2.jpg", "detections.json"]
    content = report("found")
    assert content["checkpoint"] == weights
    assert content["classes"] == list(CLASSES)
    assert (content["model"], content["score"], content["nms_iou"]) == ("ssd", 0.3, 0.45)
    assert [entry["file"] for entry in content["images"]] == [f"images/{number}.jpg" for number in range(3)]
    total = 0
    for entry, (height, width) in zip(content["images"], ((60, 90), (131, 77), (96, 96))):
        assert (entry["height"], entry["width"]) == (height, width)
        drawn = cv2.imread(f"found/{entry['drawn']}")
        assert drawn.shape == (height, width, 3)
        assert np.abs(drawn.astype(int) - cv2.imread(entry["file"])).max() > 50
        assert 0 < len(entry["detections"]) <= 15
        total += len(entry["detections"])
        for found in entry["detections"]:
            left, top, right, bottom = found["box"]
            assert found["class"] in CLASSES
            assert 0.3 <= found["score"] <= 1
            assert 0 <= left <= right <= width
            assert 0 <= top <= bottom <= height
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 5
    assert "ssd (tiny, 96x96), 3 classes; score >= 0.3, NMS IoU 0.45" in lines[0]
    assert lines[1].startswith("images/0.jpg  90x60  ")
    assert lines[4].startswith("3 images in ")
    assert sum(int(word) for word in lines[4].split(": ")[1].replace(",", " ").split() if word.isdigit()) == total
    assert captured.err == ""


def test_score_replaces_the_config_s(weights: str, image_files: Path) -> None:
    counts = []
    for score in (0, 0.3, 0.99):
        assert detect(weights, image_files / "0.jpg", "--score", score, "--json") == 0
        counts.append(len(report()["images"][0]["detections"]))
    assert counts[0] == 15
    assert counts[0] >= counts[1] > counts[2] == 0
    # with nothing on it, the drawn image is the image, in its own colours
    assert np.abs(cv2.imread("detections/0.jpg").astype(int) - cv2.imread("images/0.jpg")).mean() < 5


def test_without_json_there_is_none(weights: str, image_files: Path) -> None:
    assert detect(weights, "images/[01].jpg") == 0
    assert files() == ["0.jpg", "1.jpg"]


def test_same_names_from_several_folders(weights: str, image_files: Path) -> None:
    for folder in ("other", "third/images"):
        Path(folder).mkdir(parents=True)
        Image.fromarray(sample_image(30, 40, seed=9)).save(Path(folder, "0.JPG"))
    Image.fromarray(sample_image(30, 40, seed=9)).save("other/0.gif")
    assert detect(weights, "images/0.jpg", "other", "third/**/0.*", "--json") == 0
    assert files() == ["0.jpg", "0.png", "detections.json", "images-0.JPG", "other-0.JPG"]
    assert [(entry["file"], entry["drawn"]) for entry in report()["images"]] == [
        ("images/0.jpg", "0.jpg"),
        ("other/0.JPG", "other-0.JPG"),
        ("other/0.gif", "0.png"),
        ("third/images/0.JPG", "images-0.JPG"),
    ]


def test_drawn_names_are_all_different() -> None:
    sources = [Path("/a/x.jpg"), Path("/b/x.jpg"), Path("/c/b/X.jpg"), Path("/b-x.jpg"), Video(Path("/v.avi"))]
    sources += [Video(Path("/v.mov")), Video(Path("/w/v.mov")), Video(3)]
    names = [*drawn_names(sources)]
    assert names == ["x.jpg", "b-x.jpg", "c-b-X.jpg", "b-x-2.jpg", "v.mp4", "v-2.mp4", "w-v.mp4", "camera3.mp4"]


def test_video_and_photo_together(weights: str, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert detect(weights, "images/0.jpg", clip, "images/1.jpg", "--json", "--batch", 3, "--score", ".3") == 0
    assert files() == ["0.jpg", "1.jpg", "clip.mp4", "detections.json"]
    entries = report()["images"]
    assert [entry["file"] for entry in entries] == ["images/0.jpg", *["clip.avi"] * 7, "images/1.jpg"]
    assert [entry["frame"] for entry in entries[1:8]] == list(range(7))
    assert [entry["seconds"] for entry in entries[1:8]] == [round(number / 12.5, 3) for number in range(7)]
    assert all((entry["width"], entry["height"]) == (64, 48) and entry["detections"] for entry in entries[1:8])
    drawn = cv2.VideoCapture("detections/clip.mp4")
    assert drawn.get(cv2.CAP_PROP_FPS) == 12.5
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 7
    assert "clip.avi  64x48  7 frames  " in capsys.readouterr().out


def test_broken_photo_among_many(weights: str, image_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image_files / "1.jpg").write_bytes((image_files / "1.jpg").read_bytes()[:700])
    (image_files / "00.png").write_text("no image")
    assert detect(weights, image_files, "--json") == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "error: images/00.png: corrupt or truncated image",
        "error: images/1.jpg: corrupt or truncated image",
    ]
    assert files() == ["0.jpg", "2.jpg", "detections.json"]
    assert [entry["file"] for entry in report()["images"]] == ["images/0.jpg", "images/2.jpg"]
    assert "2 of 4 sources" in captured.out.splitlines()[-1]


def test_nothing_but_broken_photos(weights: str, image_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.jpg").write_text("no image")
    Path("b.jpg").write_bytes(b"")
    assert detect(weights, "a.jpg", "--json") == 2
    assert one_error(capsys) == "error: a.jpg: corrupt or truncated image"
    assert detect(weights, "a.jpg", "b.jpg", "--json") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[2] == "error: none of the 2 sources could be read"
    assert not Path("detections").exists()


def wrong_inputs() -> dict[str, tuple[list[str], str]]:
    return {
        "missing file": (["no.jpg"], "no image, folder or video no.jpg"),
        "missing folder": (["no/"], "no image, folder or video no/"),
        "empty folder": (["empty"], "no images in folder empty"),
        "glob": (["images/*.png"], "glob 'images/*.png' matches no image or video"),
        "camera": (["9"], "camera 9: no such camera"),
        "text as video": (["text.mp4"], "text.mp4: not a readable video"),
        "empty video": (["empty.mov"], "empty.mov: not a readable video"),
        "text": (["text"], "text: neither an image nor a video"),
        "video after images": (["images", "text.mp4"], "text.mp4: not a readable video"),
        "missing after images": (["images", "no.jpg"], "no image, folder or video no.jpg"),
        "empty name": ([""], "a source is empty"),
        "out is a file": (["images", "--out", "text"], "--out text: text is a file"),
        "out below a file": (["images", "--out", "text/a/b"], "is a file, not a folder"),
        "out is the source": (["images", "--out", "images"], "images/0.jpg is a source and would be overwritten"),
        "device": (["images", "--device", "gpu"], "device 'gpu' is not one of auto, cpu, cuda"),
    }


@pytest.mark.parametrize("case", wrong_inputs())
def test_wrong_input_is_one_line_and_status_2(
    weights: str, image_files: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    Path("text").write_text("a text file\n" * 50)
    Path("text.mp4").write_text("a text file\n" * 50)
    Path("empty.mov").touch()
    Path("empty").mkdir()
    before = sorted(path for path in Path().rglob("*"))
    arguments, words = wrong_inputs()[case]
    # in a process of its own, since FFmpeg reads its log level once
    code = "import sys; from detkit.cli import run_command; sys.exit(run_command('detect', sys.argv[1:]))"
    if "video" in case or case in ("camera", "text"):
        status = subprocess.run([sys.executable, "-c", code, weights, *arguments, "--json"], check=False).returncode
    else:
        status = detect(weights, *arguments, "--json")
    assert status == 2
    assert words in one_error(capfd)
    assert sorted(path for path in Path().rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--score", "high"], ["--score", "nan"], ["--batch", "0"], ["--colour", "red"]])
def test_wrong_option(
    weights: str, image_files: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        detect(weights, image_files, *arguments)
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err.splitlines()[-1]


def test_text_file_as_checkpoint(image_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("best.pt").write_text("no weights")
    assert detect("best.pt", image_files) == 2
    assert "best.pt: " in one_error(capsys)
    assert detect("missing.pt", image_files) == 2
    assert "missing.pt" in one_error(capsys)
    assert not Path("detections").exists()


def test_video_cut_off_half_way(weights: str, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = clip.read_bytes()
    Path("cut.avi").write_bytes(content[: len(content) // 2])
    assert detect(weights, "cut.avi", "--json") == 1
    error = one_error(capsys)
    assert "cut.avi: ends after " in error
    assert "of 7 frames" in error
    frames = len(report()["images"])
    assert 0 < frames < 7
    assert cv2.VideoCapture("detections/cut.mp4").get(cv2.CAP_PROP_FRAME_COUNT) == frames


class Camera:
    """A camera that shows a clip for ever; Ctrl-C is pressed while it takes its sixth image."""

    def __init__(self, clip: Path) -> None:
        self.clip, self.taken = clip, 0
        self.capture = cv2_capture(str(clip))

    def read(self) -> tuple[bool, np.ndarray]:
        self.taken += 1
        if self.taken == 6:
            os.kill(os.getpid(), signal.SIGINT)
        good, frame = self.capture.read()
        if not good:
            self.capture = cv2_capture(str(self.clip))
            good, frame = self.capture.read()
        return good, frame

    def get(self, key: int) -> float:
        return self.capture.get(key) if key == cv2.CAP_PROP_FPS else -1.0

    def release(self) -> None:
        self.capture.release()


cv2_capture = cv2.VideoCapture


def test_camera_until_interrupted(
    weights: str, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def capture(place: str | int) -> object:
        return Camera(clip) if isinstance(place, int) else cv2_capture(place)

    monkeypatch.setattr(cv2, "VideoCapture", capture)
    assert detect(weights, "2", "--json") == 0
    assert files() == ["camera2.mp4", "detections.json"]
    entries = report()["images"]
    assert 2 <= len(entries) <= 7
    assert entries[0]["file"] == "camera 2"
    assert [entry["frame"] for entry in entries] == list(range(len(entries)))
    assert "camera 2  64x48  " in capsys.readouterr().out
    # it plays at true speed
    count = cv2_capture("detections/camera2.mp4").get(cv2.CAP_PROP_FRAME_COUNT)
    assert abs(count - (int(entries[-1]["seconds"] * 12.5) + 1)) <= 1


def test_interrupted_video_leaves_nothing_half_written(
    weights: str, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, drawn = viz.draw, []

    def interrupted(*arguments, **keys):
        drawn.append(1)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(*arguments, **keys)

    monkeypatch.setattr(viz, "draw", interrupted)
    assert detect(weights, clip, "--json", "--batch", 2) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert files() == []


@pytest.mark.parametrize("source", ["images/0.jpg", "clip.avi"])
def test_no_space_left(weights: str, clip: Path, source: str) -> None:
    """A limit on the size of files stands for a full disk."""
    code = (
        "import sys, resource, signal; from detkit.cli import run_command\n"
        "import torch, cv2, detkit.inference.predict\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "sys.exit(run_command('detect', sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, weights, source], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert "detections" in lines[0]
    assert files() == []


def test_memory_does_not_grow_with_the_length(weights: str, image_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 images, read two at once, no more than a few batches are ever in memory."""
    alive, most = set(), 0

    def read(path: Path) -> np.ndarray:
        nonlocal most
        image = sample_image(30, 40)
        alive.add(path)
        most = max(most, len(alive))
        weakref.finalize(image, alive.discard, path)
        return image

    def slow(image: np.ndarray, *_: object, **__: object) -> np.ndarray:
        time.sleep(0.03)
        return image

    monkeypatch.setattr(images, "decode_image", read)
    monkeypatch.setattr(viz, "draw", slow)  # the network must wait for whoever draws
    Path("many").mkdir()
    for number in range(60):
        Path(f"many/{number}.jpg").touch()
    assert detect(weights, "many", "--batch", 2) == 0
    assert len(files()) == 60
    assert most <= 16
