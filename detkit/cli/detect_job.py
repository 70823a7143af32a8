"""The work of detkit detect: images and videos in; images, videos and lines out."""

import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from detkit.cli.detect_report import Add, Seen
from detkit.config import Config
from detkit.errors import UserError
from detkit.files import write_image
from detkit.inference.images import Frame, ImageSource
from detkit.inference.predict import STEPS, detect_images
from detkit.inference.results import ImageDetections
from detkit.inference.sources import Video, VideoReader, video_writer
from detkit.models import Detector
from detkit.names import LONGEST, fit_name, plain_name
from detkit.runtime.progress import Progress
from detkit.runtime.screen import complain, say
from detkit.runtime.signals import Interrupt
from detkit.runtime.stopwatch import Timed, untimed
from detkit.viz.window import Window

T = TypeVar("T")

MANY = 50  # images, from which a terminal shows a bar instead of a line each
WRITERS = 2  # threads that draw and encode
AHEAD = 8  # images, at most, that wait to be written: those of a batch come together
WRITING = ("drawing", "writing", "lists")  # steps of an image, beside those of predict.STEPS


@dataclass
class Job:
    """What one command has done so far.

    report: lists what was seen. stop: entered all the while; what it has received ends the work early, with whole
    files, after the batch at hand. alone: whether there is but one source, whose error ends the work. crops: the folder
    that detections are cut out into. draws: whether images and videos are written, with what was found. timed: takes
    the time of the steps, see STEPS. ended_a_camera: which only the user can, so that it is no interruption. written,
    unwritten: images, crops and videos; what is not written does not end the work, which may have other results.
    """

    detector: Detector
    config: Config
    score_thresholds: Tensor
    batch: int
    out: Path
    report: Add
    stop: Interrupt
    alone: bool
    crops: Path | None
    window: Window | None
    draws: bool = True
    timed: Timed = untimed
    sources: int = 0
    failures: int = 0
    damaged: int = 0
    done: int = 0
    ended_a_camera: bool = False
    written: int = 0
    unwritten: list[UserError] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def images(self, drawn: Iterator[tuple[Path, str]], count: int) -> None:
        """Detect on image files, given with the names of their drawn images; a line each, or a bar for many.

        count: about how many, for the bar.
        """
        lines = count < MANY or not sys.stdout.isatty()
        done = 0
        waiting: deque[tuple[Path, str]] = deque()  # read ahead by the detector's threads, in order

        def paths() -> Iterator[Path]:
            for pair in drawn:
                waiting.append(pair)
                yield pair[0]

        with (
            closing(self._detect(paths(), self.batch)) as results,
            _in_background(WRITERS) as submit,
            _in_background(1) as listed,
            Progress(transient=True) as bars,
        ):
            for result in results:
                path, name = waiting.popleft()
                self.sources += 1
                done += 1
                if not lines:
                    bars.move("images", done, count)
                if isinstance(result, UserError):
                    if self.alone:
                        raise result
                    self.failures += 1
                    complain(str(result))
                else:
                    seen = Seen(str(path), name, result, self.draws)
                    counts = self._seen(seen, submit, listed)
                    if self.window is not None:
                        self.window.show(result.plot())
                    if self.draws:
                        submit(self._attempt, self._write_drawn, seen)
                    if lines:
                        width, height = seen.size
                        say(f"{path}  {width}x{height}  {_in_words(counts)}")
                if self.is_over():
                    break

    def video(self, video: Video, name: str) -> None:
        """Detect on every frame of a video, or of a camera until Ctrl-C."""
        self.sources += 1
        counts: Counter[str] = Counter()
        number = 0
        # a camera's image is shown at once, not when a batch is full
        batch = 1 if video.is_camera else self.batch
        with VideoReader(video) as frames:
            height, width = frames.size

            def images() -> Iterator[Frame]:
                numbered = enumerate(frames.timed())
                while (item := self._next(numbered)) is not None:
                    yield Frame(video, item[1][0], item[0], item[1][1])

            writer = video_writer(self.out / name, frames.fps, frames.size)
            with (
                self._attempted(writer) if self.draws else nullcontext() as append,
                closing(self._detect(images(), batch)) as results,
                _in_background(WRITERS) as submit,
                _in_background(1) as listed,
                _in_background(1) as appended,
                Progress(transient=True) as bars,
            ):
                begun = time.monotonic()
                for result in results:
                    if isinstance(result, UserError):
                        raise result
                    if video.is_camera:  # its images come as the network is ready, whatever rate it states
                        result = replace(result, seconds=time.monotonic() - begun)
                    seen = Seen(str(video), name, result, self.draws)
                    counts += self._seen(seen, submit, listed)
                    if append is not None:
                        appended(self._append, append, result)
                    if self.window is not None:
                        self.window.show(result.plot())
                    number += 1
                    bars.move(str(video), number, frames.count or None)
                    if self.is_over():
                        self.ended_a_camera = video.is_camera
                        break
        say(f"{video}  {width}x{height}  {number} frames  {_in_words(counts)}")
        if frames.cut_off and not self.is_over():
            self.damaged += 1
            complain(f"{video}: ends after {frames.read} of {frames.count} frames; it may be cut off")

    def summary(self, seconds: float, listed: Sequence[str]) -> str:
        """Return the closing line; listed: the files and folders beside the images."""
        rate = f"{self.done / seconds:.1f} images/s"
        broken = self.failures + self.damaged
        failed = f"; {broken} of {self.sources} sources damaged" if broken else ""
        files = [*listed, *["images"] * self.draws]
        where = f"; {', '.join(files)} in {self.out}" if files else ""
        where += f"{',' if files else ';'} crops in {self.crops}" if self.crops else ""
        images = f"{self.done} image{'s' * (self.done != 1)}"
        return f"{images} in {seconds:.1f} s ({rate}): {_in_words(self.counts)}{failed}{where}"

    def _detect(self, images: Iterator[ImageSource], batch: int) -> Generator[ImageDetections | UserError]:
        limits = self.score_thresholds
        return detect_images(self.detector, images, self.config, batch=batch, score_thresholds=limits, timed=self.timed)

    def _next(self, frames: Iterator[T]) -> T | None:
        with self.timed("decoding"):
            return next(frames, None)

    def is_over(self) -> bool:
        """Whether the user has ended it."""
        return bool(self.stop.received) or (self.window is not None and not self.window.open)

    def _seen(self, seen: Seen, submit: Callable[..., None], listed: Callable[..., None]) -> Counter[str]:
        """Count, list and cut out the detections of an image or frame."""
        listed(self._list, seen)
        if self.crops is not None:
            for path, pixels in _crops(self.crops, seen):
                submit(self._attempt, write_image, path, pixels)
        counts = Counter(seen.found.names)
        self.counts += counts
        self.done += 1
        return counts

    def _attempt(self, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(*arguments)
            self.written += 1
        except UserError as error:
            self.unwritten.append(error)

    @contextmanager
    def _attempted(self, writer: AbstractContextManager[T]) -> Iterator[T]:
        """`writer`, of which the end, where it finds that nothing could be written, is `_attempt`ed."""
        with ExitStack() as stack:
            yield stack.enter_context(writer)
            self._attempt(stack.close)

    def _list(self, seen: Seen) -> None:
        with self.timed("lists"):
            self.report(seen)

    def _write_drawn(self, seen: Seen) -> None:
        drawn = self._drawn(seen.found)
        with self.timed("writing"):
            write_image(self.out / seen.drawn, drawn)

    def _append(self, append: Callable[[np.ndarray, float], None], result: ImageDetections) -> None:
        drawn = self._drawn(result)
        with self.timed("writing"):
            append(drawn, result.seconds or 0.0)

    def _drawn(self, result: ImageDetections) -> np.ndarray:
        with self.timed("drawing"):
            return result.plot()

    def profile(self, seconds: dict[str, float], whole: float) -> list[str]:
        """Return a table of where the time went. seconds: of each step; whole: of all, from first to last."""
        images = max(1, self.done)
        rows = [f"{'step':16}{'seconds':>9}{'ms an image':>13}{'images/s':>11}"]
        for step in (*STEPS, *WRITING):
            if step in seconds:
                spent = seconds[step]
                rows.append(f"{step:16}{spent:9.2f}{spent / images * 1e3:13.2f}{images / max(spent, 1e-9):11.1f}")
        return [*rows, f"{'by the clock':16}{whole:9.2f}{whole / images * 1e3:13.2f}{images / whole:11.1f}"]


def _crops(folder: Path, seen: Seen) -> list[tuple[Path, np.ndarray]]:
    """Return a file name, FOLDER/CLASS/IMAGE-NUMBER, and the pixels, a copy, of each detection that has any.

    All pixels that the box touches belong to it; numbers count the image's detections, from 1.
    """
    stem, suffix = Path(seen.drawn).stem, Path(seen.drawn).suffix
    if seen.found.frame is not None:
        stem, suffix = f"{stem}-{seen.found.frame:06d}", ".jpg"
    width, height = seen.size
    cuts = []
    for number, (label, _, (left, top, right, bottom)) in enumerate(seen.found.rows(), 1):
        columns = slice(max(0, int(left)), min(width, math.ceil(right)))
        lines = slice(max(0, int(top)), min(height, math.ceil(bottom)))
        # a copy, lest a crop that waits to be written keep the image in memory
        pixels = seen.found.pixels[lines, columns].copy()
        if pixels.size:
            end = f"-{number}{suffix}"
            name = fit_name(stem, LONGEST - len(end)) + end
            cuts.append((folder / _folder_name(seen.found.classes[label]) / name, pixels))
    return cuts


def _folder_name(name: str) -> str:
    """Return a class's name as a folder can be called."""
    name = "".join("_" if character in '/\\:*?"<>|' else character for character in plain_name(name))
    return fit_name(name.strip(" .")) or "_"


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing found"


@contextmanager
def _in_background(threads: int) -> Iterator[Callable[..., None]]:
    """Yield a function that calls functions in some threads, few waiting at a time, in order where there is one thread;
    the first error comes back out."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(threads) as pool:

        def submit(function: Callable[..., None], *arguments: Any) -> None:
            waiting.append(pool.submit(function, *arguments))
            if len(waiting) > AHEAD:
                waiting.popleft().result()

        yield submit
        while waiting:
            waiting.popleft().result()
