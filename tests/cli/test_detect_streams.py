"""detkit detect: times of frames, Ctrl-C, and the window."""

import json
import os
import signal
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detkit import viz
from detkit.errors import UserError
from detkit.inference.sources import Video, VideoReader, video_writer
from detkit.viz.window import Window
from tests.cli.detecting import detect, opened, report
from tests.proposals.sample_images import sample_image

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


def test_uneven_frames_keep_their_times(weights: str, image_files: Path) -> None:
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
    frame = sample_image(48, 64)
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
        Image.fromarray(sample_image(20, 30, seed=number)).save(f"many/{number:02d}.jpg")
    press_at(monkeypatch, 3)
    formats = ["--format", "json,coco,csv,voc,yolo"]
    assert detect(weights, source, "--batch", 2, "--score", ".3", *formats) == 130
    assert "interrupted after " in one_error_line(capsys)
    done = len(report()["images"])
    # of the clip's 7 frames all may be through the network while the third is drawn
    assert 0 < done < (60 if source == "many" else 8)
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
    """Stands for tkinter; closes its window after the second image."""

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
    weights: str, image_files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import ImageTk

    screen = Screen()
    monkeypatch.setenv("DISPLAY", ":77")
    monkeypatch.setitem(sys.modules, "tkinter", screen)
    monkeypatch.setattr(ImageTk, "PhotoImage", lambda sample_image, master: sample_image)
    assert detect(weights, image_files, "--show", "--json") == 130
    assert screen.shown == 2
    assert len(report()["images"]) == 2
    assert "interrupted after 2 of 3 sources" in one_error_line(capsys)


def test_no_window_where_there_is_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":98765")
    with pytest.raises(UserError, match="no display to show images on"):
        Window("x")
