"""The files that list all detections of one detkit detect: detections.json, COCO's results, a table."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain, count, repeat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from detkit.errors import Attempt
from detkit.files import atomic_path
from detkit.names import cell_text

if TYPE_CHECKING:
    from detkit.inference.results import ImageDetections

COLUMNS = ("file", "frame", "seconds", "width", "height", "class", "score", "left", "top", "right", "bottom")


@dataclass(frozen=True)
class Seen:
    """One image or frame and its detections, with its pixels.

    source: as the user named it. drawn: name of its drawn image or video. is_drawn: whether there is one.
    """

    source: str
    drawn: str
    found: "ImageDetections"
    is_drawn: bool = True

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)"""
        height, width = self.found.size
        return width, height


Add = Callable[[Seen], None]
Listing = Callable[[], AbstractContextManager[Add]]  # opens files, and gives a function that adds to them


@contextmanager
def open_all(listings: Mapping[str, Listing], attempt: Attempt) -> Iterator[Add]:
    """Yield a function that adds an image or frame to all listings, given by their names.

    Their files grow entry by entry, so that a long video needs no memory, and appear, complete, at the end. That end is
    also an interruption that waits for the batch at hand; any other error leaves no file. Where one cannot be completed
    the others are.
    """
    with ExitStack() as stack:
        opened: dict[str, ExitStack] = {}
        adds: list[Add] = []

        def add(seen: Seen) -> None:
            if not adds:  # opened only now, so that a command that finds nothing to read makes no folder
                for name, listing in listings.items():
                    opened[name] = stack.enter_context(ExitStack())
                    adds.append(opened[name].enter_context(listing()))
            for each in adds:
                each(seen)

        yield add
        for name, file in opened.items():
            with attempt(name):
                file.close()


@contextmanager
def write_json(path: Path, classes: Sequence[str], header: dict[str, Any]) -> Iterator[Add]:
    """detections.json: `header`, and under "images" an entry for each image or frame."""
    with open_text(path) as file:
        file.write(_dump(header)[:-1] + ', "images": [')
        append = _appender(file)

        def add(seen: Seen) -> None:
            drawn = seen.drawn if seen.is_drawn else None
            entry = {"file": seen.source, **seen.found.moment(), "drawn": drawn}
            append({**entry, **seen.found.to_dict(), "file": seen.source})

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
            moment = seen.found.moment()
            append_image({"id": number, "file_name": seen.source, "width": width, "height": height, **moment})
            for entry in seen.found.to_coco(number):
                append_result(entry)

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
            frame = [*seen.found.moment().values()] or ["", ""]
            for label, score, box in seen.found.rows():
                table.writerow((cell_text(seen.source), *frame, *seen.size, cell_text(classes[label]), score, *box))

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


def _appender(file: IO[str]) -> Callable[[Any], object]:
    """Return a function that appends a value to the JSON list that `file` ends with, still empty."""
    commas = chain([""], repeat(","))
    return lambda value: file.write(f"{next(commas)}\n{_dump(value)}")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
