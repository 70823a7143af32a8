"""The work of detkit detect: photos and videos in; pictures, videos and lines out."""

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from detkit.cli.detect_report import Report, plain
from detkit.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from detkit.config import Config
    from detkit.engine.predict import Found
    from detkit.engine.sources import Video
    from detkit.models import Detector
    from detkit.structures import Detections

MANY = 50  # photos, from which a terminal shows a bar instead of a line each
WRITERS = 2  # threads that draw and encode


class Job:
    """What one command has done so far."""

    def __init__(
        self, detector: "Detector", config: "Config", batch: int, out: Path, report: Report, sources: int
    ) -> None:
        self.detector, self.config, self.batch = detector, config, batch
        self.out, self.report, self.sources = out, report, sources
        self.failures = self.damaged = self.images = 0
        self.counts: Counter[str] = Counter()

    def photos(self, drawn: dict[Path, str]) -> None:
        """Detect on photo files, given with the names of their drawn pictures; a line each, or a bar for many."""
        from detkit.engine.predict import Unreadable, detect_images

        lines = len(drawn) < MANY or not sys.stdout.isatty()
        with (
            closing(detect_images(self.detector, drawn, self.config, batch=self.batch)) as results,
            _in_background() as submit,
            _bar("photos", len(drawn), shown=not lines) as step,
        ):
            for (path, name), result in zip(drawn.items(), results, strict=True):
                step()
                if isinstance(result, Unreadable):
                    self._failed(result.error)
                    continue
                height, width = result.image.shape[:2]
                submit(lambda name=name, result=result: _write_picture(self.out / name, self._draw(result)))
                found = self._count(result.detections)
                detections = plain(result.detections, self.detector.classes)
                entry = {"file": str(path), "drawn": name, "width": width, "height": height}
                self.report.add({**entry, "detections": detections})
                if lines:
                    print(f"{path}  {width}x{height}  {_in_words(found)}", flush=True)

    def video(self, video: "Video", name: str) -> None:
        """Detect on every frame of a video, or of a camera until Ctrl-C."""
        from detkit.engine.predict import Unreadable, detect_images
        from detkit.engine.signals import Interrupt
        from detkit.engine.sources import VideoReader, video_writer

        found: Counter[str] = Counter()
        number = written = 0
        # a camera's picture is wanted now, not when a batch is full; and only Ctrl-C ends it, which is then no error
        batch = 1 if video.is_camera else self.batch
        stop = Interrupt() if video.is_camera else None
        with VideoReader(video) as frames:
            height, width = frames.size
            with (
                video_writer(self.out / name, frames.fps, frames.size) as append,
                closing(detect_images(self.detector, frames, self.config, batch=batch)) as results,
                _bar(str(video), frames.count or None, shown=sys.stderr.isatty()) as step,
                stop or nullcontext(),
            ):
                begun = time.monotonic()
                for result in results:
                    if isinstance(result, Unreadable):
                        raise result.error
                    seconds = time.monotonic() - begun if video.is_camera else number / frames.fps
                    # a camera's pictures come as the network is ready: repeated or left out, they play at true speed
                    copies = int(seconds * frames.fps) + 1 - written if video.is_camera else 1
                    drawn = self._draw(result)
                    for _ in range(copies):
                        append(drawn)
                        written += 1
                    found += self._count(result.detections)
                    detections = plain(result.detections, self.detector.classes)
                    entry = {"file": str(video), "frame": number, "seconds": round(seconds, 3), "drawn": name}
                    self.report.add({**entry, "width": width, "height": height, "detections": detections})
                    number += 1
                    step()
                    if stop is not None and stop.received:
                        break
        print(f"{video}  {width}x{height}  {number} frames  {_in_words(found)}", flush=True)
        if frames.cut_off:
            self.damaged += 1
            _report(f"{video}: ends after {frames.read} of {frames.count} frames; it may be cut off")

    def summary(self, seconds: float) -> str:
        """Return the closing line."""
        rate = f"{self.images / seconds:.1f} images/s"
        broken = self.failures + self.damaged
        failed = f"; {broken} of {self.sources} sources damaged" if broken else ""
        where = (
            f"{self.out}/detections.json and pictures in {self.out}" if self.report.path else f"pictures in {self.out}"
        )
        images = f"{self.images} image{'s' * (self.images != 1)}"
        return f"{images} in {seconds:.1f} s ({rate}): {_in_words(self.counts)}{failed}; {where}"

    def _count(self, detections: "Detections") -> Counter[str]:
        found = Counter(self.detector.classes[label] for label in detections.labels[0].tolist())
        self.counts += found
        self.images += 1
        return found

    def _failed(self, error: UserError) -> None:
        if self.sources == 1 and not self.images:
            raise error
        self.failures += 1
        _report(str(error))

    def _draw(self, result: "Found") -> "np.ndarray":
        from detkit.viz import draw

        boxes, scores, labels = result.detections.image(0)
        return draw(result.image, boxes, labels, self.detector.classes, scores=scores)


def _write_picture(path: Path, image: "np.ndarray") -> None:
    import cv2

    from detkit.engine.checkpoint import write_file

    good, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not good:
        raise UserError(f"{path}: OpenCV cannot write {path.suffix} pictures")
    write_file(path, content.tobytes())


def _report(problem: str) -> None:
    print(f"error: {problem}", file=sys.stderr, flush=True)


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing found"


@contextmanager
def _in_background() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Yield a function that runs tasks in a few threads, few waiting at a time; the first error comes back out."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(WRITERS) as pool:

        def submit(task: Callable[[], None]) -> None:
            waiting.append(pool.submit(task))
            if len(waiting) > 2 * WRITERS:
                waiting.popleft().result()

        yield submit
        while waiting:
            waiting.popleft().result()


@contextmanager
def _bar(title: str, total: int | None, *, shown: bool) -> Iterator[Callable[[], None]]:
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title, markup=False), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
