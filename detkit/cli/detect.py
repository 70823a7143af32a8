"""detkit detect: a checkpoint on images, folders, globs, videos and cameras."""

import argparse
import json
import math
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from detkit.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from detkit.config import Config
    from detkit.engine.predict import Found
    from detkit.engine.sources import Video
    from detkit.models import Detector
    from detkit.structures import Detections

EPILOG = """examples:
  detkit detect runs/cards-1/best.pt photo.jpg
  detkit detect runs/cards-1/best.pt photos/ 'more/**/*.jpg' clip.mp4 --score 0.3 --out found --json
  detkit detect runs/cards-1/best.pt 0            (camera 0, until Ctrl-C)

detections.json holds the checkpoint, model, classes, score threshold and NMS IoU, and under "images" one entry a
photo, or a frame of a video: file, (frame, seconds,) drawn, width, height, detections. Each detection has class, score
and box: [left, top, right, bottom] in pixels of the file, continuous, 0 at the left and upper edge.

exit status: 0; 1 if some of several sources could not be read; 2 if nothing could be done.
"""

MANY = 50  # photos, from which a terminal shows a bar instead of a line each
KEPT_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
WRITERS = 2  # threads that draw and encode


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="detkit detect",
        description="Run a trained detector. Writes each photo with its detections drawn, under the same name, and "
        "each video as MP4.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="best.pt or last.pt of a run")
    parser.add_argument("source", nargs="+", help="image, folder, 'glob', video file or camera number")
    parser.add_argument("--score", type=_finite, default=0.5, help="least score of a detection (default %(default)s)")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("detections"), help="default %(default)s")
    parser.add_argument("--json", action="store_true", help="write DIR/detections.json too")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--batch", type=_positive, default=8, help="images at once (default %(default)s)")
    return parser


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Detect on every source in the order given."""
    from dataclasses import replace
    from itertools import groupby

    # the cheap questions first: a misspelt name is answered before torch has loaded
    from detkit.engine.sources import VideoReader, find_sources, quiet

    quiet()
    sources = find_sources(arguments.source)
    drawn = drawn_names(sources)
    _check_out(arguments.out, sources, drawn)
    for video in sources:
        if not isinstance(video, Path):
            with VideoReader(video):
                pass  # opens, or says why not, before anything is written

    import torch

    from detkit.engine import memory
    from detkit.engine.checkpoint import load_detector
    from detkit.engine.device import choose_device, place

    memory.tune()
    device = choose_device(arguments.device)
    detector, config = load_detector(arguments.checkpoint, device)
    place(detector, device, config.train.channels_last)
    config = replace(config, detect=replace(config.detect, score=arguments.score))
    print(_protocol(arguments.checkpoint, detector, config, device))

    start = time.perf_counter()
    header = {
        "checkpoint": str(arguments.checkpoint),
        "model": config.model.name,
        "classes": list(detector.classes),
        "score": config.detect.score,
        "nms_iou": config.detect.iou,
    }
    try:
        with Report(arguments.out / "detections.json" if arguments.json else None, header) as report:
            job = _Job(detector, config, arguments.batch, arguments.out, report, len(sources))
            # photos that follow each other share batches
            for _, group in groupby(zip(sources, drawn), key=lambda pair: isinstance(pair[0], Path)):
                photos = {}
                for source, name in group:
                    if isinstance(source, Path):
                        photos[source] = name
                    else:
                        job.video(source, name)
                if photos:
                    job.photos(photos)
            if job.failures == len(sources):
                raise UserError(f"none of the {len(sources)} sources could be read")
    except torch.OutOfMemoryError:
        raise UserError(f"out of GPU memory; try a --batch below {arguments.batch}") from None
    print(job.summary(time.perf_counter() - start))
    return 1 if job.failures or job.damaged else 0


def drawn_names(sources: "Iterable[Path | Video]") -> list[str]:
    """Return a file name for each source's drawn picture or video, all different, also where case doesn't count.

    It is the source's own name; where that is taken, its folders' names come before it: b/x.jpg -> b-x.jpg.
    """
    taken: set[str] = set()
    names = []
    for source in sources:
        if isinstance(source, Path):
            path = source.absolute()
            name = path.name if path.suffix.lower() in KEPT_SUFFIXES else path.stem + ".png"
            folders = [part for part in path.parent.parts if part != path.anchor]
        elif isinstance(source.place, Path):
            path = source.place.absolute()
            name, folders = path.stem + ".mp4", [part for part in path.parent.parts if part != path.anchor]
        else:
            name, folders = f"camera{source.place}.mp4", []
        plain = name
        while name.lower() in taken and folders:
            name = f"{folders.pop()}-{name}"
        number = 2
        while name.lower() in taken:
            name = f"{Path(plain).stem}-{number}{Path(plain).suffix}"
            number += 1
        taken.add(name.lower())
        names.append(name)
    return names


def _check_out(out: Path, sources: "list[Path | Video]", drawn: list[str]) -> None:
    """Refuse an output folder that can't be one, or in which a source would be overwritten."""
    for folder in (out, *out.absolute().parents):
        if folder.exists():
            if not folder.is_dir():
                raise UserError(f"--out {out}: {folder} is a file, not a folder")
            break
    places = [source if isinstance(source, Path) else source.place for source in sources]
    originals = {place.resolve() for place in places if isinstance(place, Path)}
    for name in drawn:
        if (out / name).resolve() in originals:
            raise UserError(f"--out {out}: {out / name} is a source and would be overwritten; choose another folder")


def _protocol(checkpoint: str, detector: "Detector", config: "Config", device: Any) -> str:
    backbone = getattr(getattr(config.model, "backbone", None), "name", None)
    height, width = detector.input.size
    inside = f" ({backbone}, {width}x{height})" if backbone else f" ({width}x{height})"
    settings = config.detect
    return (
        f"{checkpoint}: {config.model.name}{inside}, {len(detector.classes)} classes; "
        f"score >= {settings.score:g}, NMS IoU {settings.iou:g}, at most {settings.keep} an image; {device}"
    )


class _Job:
    """What one command has done so far."""

    def __init__(
        self, detector: "Detector", config: "Config", batch: int, out: Path, report: "Report", sources: int
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
                detections = _plain(result.detections, self.detector.classes)
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
                    detections = _plain(result.detections, self.detector.classes)
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


class Report:
    """detections.json, written entry by entry, so that a long video needs no memory; whole at the end or not at all.

    path: None writes nothing. header: what comes before "images".
    """

    def __init__(self, path: Path | None, header: dict[str, Any]) -> None:
        self.path, self._header = path, header
        self._entries: Generator[None, dict[str, Any] | None] | None = None

    def __enter__(self) -> Self:
        return self

    def add(self, entry: dict[str, Any]) -> None:
        """Append one photo or frame."""
        if self.path is None:
            return
        if self._entries is None:
            # only now, so that a command that finds nothing to read makes no folder
            self._entries = self._write(self.path)
            next(self._entries)
        self._entries.send(entry)

    def __exit__(self, *error: Any) -> None:
        if self._entries is None:
            return
        if error[0] is None:
            next(self._entries, None)
        else:
            self._entries.close()

    def _write(self, path: Path) -> Generator[None, dict[str, Any] | None]:
        """Write what is sent; None ends the file, closing removes it."""
        from detkit.files import atomic_path

        with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            before = json.dumps(self._header, ensure_ascii=False)[:-1] + ', "images": ['
            while (entry := (yield)) is not None:
                file.write(before + "\n" + json.dumps(entry, ensure_ascii=False))
                before = ","
            file.write("\n]}\n")


def _plain(detections: "Detections", classes: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = zip(detections.boxes[0].tolist(), detections.scores[0].tolist(), detections.labels[0].tolist())
    return [
        {"class": classes[label], "score": round(score, 6), "box": [round(edge, 3) for edge in box]}
        for box, score, label in rows
    ]


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
