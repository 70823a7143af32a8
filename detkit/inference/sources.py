"""Where images to detect on come from: files, folders, globs, videos, cameras."""

import glob
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import cv2
import numpy as np

from detkit.data.image_file import IMAGE_SUFFIXES
from detkit.errors import UserError
from detkit.files import atomic_path

SOURCE_SUFFIXES = IMAGE_SUFFIXES | {".gif", ".avif"}
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts", ".3gp", ".ogv")
)
DEFAULT_FPS = 25.0


@dataclass(frozen=True)
class Video:
    """A video file, or a camera by its number."""

    place: Path | int

    @property
    def is_camera(self) -> bool:
        return isinstance(self.place, int)

    def __str__(self) -> str:
        return f"camera {self.place}" if self.is_camera else str(self.place)


@dataclass(frozen=True)
class Folder:
    """The images of a folder, by their names alone, so that a large one takes little memory."""

    path: Path
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Path]:
        return (self.path / name for name in self.names)


class Sources:
    """What a user named: Path for an image, Video for a video file or a camera; each once, in the order given.

    A folder stands for the images in it, a glob (`**` goes down) for images and videos, a number for a camera.
    No file is opened, unless its suffix says nothing. Raises UserError for a name that stands for nothing.
    Can be gone through again and again; paths of folders are made on the way. len: how many, a file that was named
    twice counted twice. images: how many of them are images.
    """

    def __init__(self, names: Iterable[str | Path | int]) -> None:
        self._parts = [_resolve(name) for name in names]
        self.images = len(self) - len(list(self.videos()))

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def videos(self) -> Iterator[Video]:
        """Yield the videos and cameras, without a look at the images of folders."""
        for part in self._parts:
            if not isinstance(part, Folder):
                yield from (source for source in part if isinstance(source, Video))

    def __iter__(self) -> Iterator[Path | Video]:
        if len(self._parts) == 1 and isinstance(self._parts[0], Folder):  # whose names all differ
            yield from self._parts[0]
            return
        seen: set[str | int] = set()
        for part in self._parts:
            for source in part:
                opened = source.place if isinstance(source, Video) else source
                key = opened if isinstance(opened, int) else os.path.abspath(opened)
                if key not in seen:
                    seen.add(key)
                    yield source


def find_sources(names: Iterable[str | Path | int]) -> list[Path | Video]:
    """Return all that `Sources` finds."""
    return [*Sources(names)]


def _resolve(name: str | Path | int) -> Folder | list[Path | Video]:
    text, path = str(name), Path(str(name))
    if isinstance(name, int) or (text.isascii() and text.isdigit() and len(text) < 10 and not path.exists()):
        return [Video(int(text))]
    if not text:
        raise UserError("a source is empty; give an image, folder, glob, video or camera number")
    if path.is_dir():
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if _suffix(entry.name) in SOURCE_SUFFIXES and entry.is_file()]
        if not names:
            raise UserError(f"no images in folder {path}; its subfolders would be {str(path / '**' / '*.jpg')!r}")
        return Folder(path, tuple(sorted(names)))
    if path.exists():
        return [_image_or_video(path)]
    if glob.has_magic(text):
        matches = map(Path, sorted(glob.glob(os.path.expanduser(text), recursive=True)))
        known = SOURCE_SUFFIXES | VIDEO_SUFFIXES
        files = [match for match in matches if _suffix(match.name) in known and match.is_file()]
        usable = [Video(file) if _suffix(file.name) in VIDEO_SUFFIXES else file for file in files]
        if not usable:
            raise UserError(f"glob {text!r} matches no image or video")
        return usable
    raise UserError(f"no image, folder or video {text}")


def _suffix(name: str) -> str:
    """The suffix in small letters, none for a hidden file: macOS leaves ._name.jpg beside an image, which is none."""
    return "" if name.startswith(".") else os.path.splitext(name)[1].lower()


def _image_or_video(path: Path) -> Path | Video:
    suffix = path.suffix.lower()
    if suffix in SOURCE_SUFFIXES:
        return path
    if suffix in VIDEO_SUFFIXES:
        return Video(path)
    return path if cv2.haveImageReader(str(path)) else Video(path)


class VideoReader:
    """The frames of a video or camera, (H, W, 3) RGB uint8, upright. Opening it reads the first frame.

    fps: frames a second, their mean where it varies, 25 where the file doesn't say. size: (height, width). count:
    frames that the file announces, 0 for a camera and where it doesn't say. read: frames handed out so far.
    Raises UserError where there is no such video or camera, or nothing in it.
    """

    def __init__(self, video: Video) -> None:
        self.video = video
        self.read = 0
        self._capture = cv2.VideoCapture(video.place if isinstance(video.place, int) else str(video.place))
        self._first = self._next()
        self._start = self._capture.get(cv2.CAP_PROP_POS_MSEC)
        if self._first is None:
            self._capture.release()
            raise UserError(self._reason())
        height, width = self._first.shape[:2]
        self.size: tuple[int, int] = (height, width)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else DEFAULT_FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.count = int(count) if not video.is_camera and math.isfinite(count) and count > 0 else 0

    def __iter__(self) -> Iterator[np.ndarray]:
        return (frame for frame, _ in self.timed())

    def timed(self) -> Iterator[tuple[np.ndarray, float]]:
        """Yield each frame with its time in seconds after the first, as the file says it: frames may come unevenly.

        Where it says nothing, or time stands still or runs back, a frame comes 1 / fps after the one before.
        """
        frame, self._first = self._first, None
        seconds = 0.0
        while frame is not None:
            self.read += 1
            yield frame, seconds
            frame = self._next()
            stated = (self._capture.get(cv2.CAP_PROP_POS_MSEC) - self._start) / 1000
            seconds = stated if stated > seconds else seconds + 1 / self.fps

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    @property
    def cut_off(self) -> bool:
        """Whether, after the last frame, clearly fewer came than the file announces (many containers estimate it)."""
        return self.read < 0.9 * self.count

    def _next(self) -> np.ndarray | None:
        good, frame = self._capture.read()
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if good else None

    def _reason(self) -> str:
        if self.video.is_camera:
            return f"{self.video}: no such camera, or another program uses it"
        path = Path(str(self.video))
        if not os.access(path, os.R_OK):
            return f"{path}: no permission to read it"
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return f"{path}: not a readable video (damaged, cut off, or of a codec that this OpenCV lacks)"
        return f"{path}: neither an image nor a video"


@contextmanager
def video_writer(path: Path, fps: float, size: tuple[int, int]) -> Iterator[Callable[[np.ndarray, float], None]]:
    """Yield a function that takes (H, W, 3) RGB frames of `size` (height, width), and their times in seconds after the
    first, and writes them to an MP4 file of `fps` frames a second (or the nearest rate that MPEG-4 can say).

    Frames that come unevenly keep their times: one is shown until the next is due, and left out where the next is due
    in the same 1 / fps. The file appears at the end, complete, or not at all. MPEG-4 needs even sides: an odd last row
    or column is left out.
    """
    height, width = size[0] // 2 * 2, size[1] // 2 * 2
    fps = _mpeg4_rate(max(fps, 0.001))
    written = 0
    last: np.ndarray | None = None
    with atomic_path(path) as temporary:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
        if not writer.isOpened():
            raise UserError(f"{path}: this OpenCV cannot write MP4 video of {width}x{height}")

        def append(frame: np.ndarray, seconds: float) -> None:
            nonlocal written, last
            due = round(seconds * fps)
            while last is not None and written < due:
                writer.write(last)
                written += 1
            last = cv2.cvtColor(np.ascontiguousarray(frame[:height, :width]), cv2.COLOR_RGB2BGR)
            if written <= due:
                writer.write(last)
                written += 1

        try:
            yield append
        finally:
            writer.release()
        # the writer says nothing of a full disk, but its index comes last: without it the file doesn't open
        check = cv2.VideoCapture(str(temporary))
        complete = check.isOpened() and int(check.get(cv2.CAP_PROP_FRAME_COUNT)) == written
        check.release()
        if not complete:
            raise UserError(f"{path}: the video could not be written (no space left?), nothing kept")


def _mpeg4_rate(fps: float) -> float:
    """The nearest rate that cv2 writes: of three decimals, or fewer, as MPEG-4 counts in 1 / 65535 s at the finest."""
    return next(round(fps, digits) for digits in (3, 2, 1, 0) if round(fps, digits) * 10**digits <= 65535)


def quiet() -> None:
    """Keep OpenCV and FFmpeg from printing: what goes wrong is reported by detkit, in a line."""
    # read when the first video opens, so it can still be set
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    # images are decoded in detkit's threads, and torch needs the cores
    cv2.setNumThreads(1)
