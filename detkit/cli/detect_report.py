"""The files that list all detections of one detkit detect: detections.json, COCO's results, a table."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, count, repeat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from detkit.files import atomic_path

if TYPE_CHECKING:
    import numpy as np

    from detkit.structures import Detections

COLUMNS = ("file", "frame", "seconds", "width", "height", "class", "score", "left", "top", "right", "bottom")


@dataclass(frozen=True)
class Seen:
    """One image or frame and its detections.

    source: as the user named it. drawn: name of its drawn image or video. path: the file, None for a frame, which
    has a number from 0 and a time in seconds. image: (H, W, 3) RGB uint8.
    """

    source: str
    drawn: str
    path: Path | None
    image: "np.ndarray"
    detections: "Detections"
    frame: int | None = None
    seconds: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        return self.image.shape[1], self.image.shape[0]

    def rows(self) -> list[tuple[int, float, list[float]]]:
        """(label, score, [left, top, right, bottom]) of each detection, rounded to what means something."""
        boxes, scores, labels = (part.tolist() for part in self.detections.image(0))
        return [
            (label, round(score, 6), [round(edge, 3) for edge in box])
            for box, score, label in zip(boxes, scores, labels)
        ]

    def moment(self) -> dict[str, Any]:
        """Which frame of its video it is, {} for an image."""
        return {} if self.frame is None else {"frame": self.frame, "seconds": round(self.seconds or 0.0, 3)}


Add = Callable[[Seen], None]
Listing = Callable[[], AbstractContextManager[Add]]  # opens files, and gives a function that adds to them


@contextmanager
def open_all(listings: Sequence[Listing]) -> Iterator[Add]:
    """Yield a function that adds an image or frame to all listings.

    Their files grow entry by entry, so that a long video needs no memory, and appear, complete, at the end. That end is
    also an interruption that waits for the batch at hand; any other error leaves no file.
    """
    with ExitStack() as stack:
        adds: list[Add] = []

        def add(seen: Seen) -> None:
            if not adds:  # opened only now, so that a command that finds nothing to read makes no folder
                adds.extend(stack.enter_context(listing()) for listing in listings)
            for each in adds:
                each(seen)

        yield add


@contextmanager
def write_json(path: Path, classes: Sequence[str], header: dict[str, Any]) -> Iterator[Add]:
    """detections.json: `header`, and under "images" an entry for each image or frame."""
    with open_text(path) as file:
        file.write(_dump(header)[:-1] + ', "images": [')
        append = _appender(file)

        def add(seen: Seen) -> None:
            detections = [{"class": classes[label], "score": score, "box": box} for label, score, box in seen.rows()]
            width, height = seen.size
            entry = {"file": seen.source, **seen.moment(), "drawn": seen.drawn, "width": width, "height": height}
            append({**entry, "detections": detections})

        yield add
        file.write("\n]}\n")


@contextmanager
def write_coco(path: Path, classes: Sequence[str]) -> Iterator[Add]:
    """coco_results.json, the list that COCO's tools read, and coco_images.json, whose images and categories its ids
    mean: an annotation file without annotations."""
    with open_text(path) as results, open_text(path.with_name("coco_images.json")) as images:
        categories = [{"id": label, "name": name} for label, name in enumerate(classes, 1)]
        results.write("[")
        images.write('{"categories": ' + _dump(categories) + ', "annotations": [], "images": [')
        append_result, append_image = _appender(results), _appender(images)
        numbers = count(1)

        def add(seen: Seen) -> None:
            width, height = seen.size
            number = next(numbers)
            append_image({"id": number, "file_name": seen.source, "width": width, "height": height, **seen.moment()})
            for label, score, (left, top, right, bottom) in seen.rows():
                box = [left, top, round(right - left, 3), round(bottom - top, 3)]
                append_result({"image_id": number, "category_id": label + 1, "bbox": box, "score": score})

        yield add
        results.write("\n]\n")
        images.write("\n]}\n")


@contextmanager
def write_csv(path: Path, classes: Sequence[str]) -> Iterator[Add]:
    """detections.csv: a line a detection, under a header; frame and seconds are empty for images."""
    with open_text(path) as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)

        def add(seen: Seen) -> None:
            frame = [*seen.moment().values()] or ["", ""]
            for label, score, box in seen.rows():
                table.writerow((seen.source, *frame, *seen.size, classes[label], score, *box))

        yield add


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 file to write, which appears when it is whole."""
    # a name that is no UTF-8 has surrogates in it: written as \udc80, which JSON reads back
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


def unused_name(taken: set[str], stem: str, suffix: str = "") -> str:
    """Return STEM with its suffix, or STEM-2, ..., the first that is not in `taken`, without regard to case; add it."""
    names = chain([f"{stem}{suffix}"], (f"{stem}-{number}{suffix}" for number in count(2)))
    name = next(name for name in names if name.lower() not in taken)
    taken.add(name.lower())
    return name


def _appender(file: IO[str]) -> Callable[[Any], object]:
    """Return a function that appends a value to the JSON list that `file` ends with, still empty."""
    commas = chain([""], repeat(","))
    return lambda value: file.write(f"{next(commas)}\n{_dump(value)}")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
