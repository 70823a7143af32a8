"""The files that list all detections of one detkit detect: detections.json, COCO's results, a table."""

import csv
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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


class Listing:
    """Files that grow entry by entry, so that a long video needs no memory, and appear, complete, at the end.

    That end is also an interruption that waits for the batch at hand; any other error leaves no file. `write` is a
    generator that is sent each `Seen`, and None at the end.
    """

    def __init__(self, write: Callable[[], Generator[None, Seen | None]]) -> None:
        self._write = write
        self._running: Generator[None, Seen | None] | None = None

    def add(self, seen: Seen) -> None:
        """Append one image or frame."""
        if self._running is None:
            # only now, so that a command that finds nothing to read makes no folder
            self._running = self._write()
            next(self._running)
        self._running.send(seen)

    def close(self, whole: bool) -> None:
        """End the files, or remove them."""
        if self._running is None:
            return
        if whole:
            next(self._running, None)
        else:
            self._running.close()


def write_json(path: Path, header: dict[str, Any]) -> Generator[None, Seen | None]:
    """detections.json: `header`, and under "images" an entry for each image or frame."""
    classes = header["classes"]
    with ExitStack() as stack:
        file = _open(stack, path)
        before = _dump(header)[:-1] + ', "images": ['
        while (seen := (yield)) is not None:
            detections = [{"class": classes[label], "score": score, "box": box} for label, score, box in seen.rows()]
            width, height = seen.size
            entry = {"file": seen.source, **seen.moment(), "drawn": seen.drawn, "width": width, "height": height}
            file.write(before + "\n" + _dump({**entry, "detections": detections}))
            before = ","
        file.write("\n]}\n")


def write_coco(folder: Path, classes: Sequence[str]) -> Generator[None, Seen | None]:
    """coco_results.json, the list that COCO's tools read, and coco_images.json, whose images and categories its ids
    mean: an annotation file without annotations."""
    with ExitStack() as stack:
        results, images = (_open(stack, folder / name) for name in ("coco_results.json", "coco_images.json"))
        categories = [{"id": label, "name": name} for label, name in enumerate(classes, 1)]
        results.write("[")
        images.write('{"categories": ' + _dump(categories) + ', "annotations": [], "images": [')
        number, comma = 0, ""
        while (seen := (yield)) is not None:
            width, height = seen.size
            number += 1
            entry = {"id": number, "file_name": seen.source, "width": width, "height": height, **seen.moment()}
            images.write("," * (number > 1) + "\n" + _dump(entry))
            for label, score, (left, top, right, bottom) in seen.rows():
                box = [left, top, round(right - left, 3), round(bottom - top, 3)]
                result = {"image_id": number, "category_id": label + 1, "bbox": box, "score": score}
                results.write(comma + "\n" + _dump(result))
                comma = ","
        results.write("\n]\n")
        images.write("\n]}\n")


def write_csv(path: Path, classes: Sequence[str]) -> Generator[None, Seen | None]:
    """detections.csv: a line a detection, under a header; frame and seconds are empty for images."""
    with ExitStack() as stack:
        table = csv.writer(_open(stack, path))
        table.writerow(COLUMNS)
        while (seen := (yield)) is not None:
            frame = [*seen.moment().values()] or ["", ""]
            for label, score, box in seen.rows():
                table.writerow((seen.source, *frame, *seen.size, classes[label], score, *box))


def _open(stack: ExitStack, path: Path) -> IO[str]:
    # a name that is no UTF-8 has surrogates in it: written as \udc80, which JSON reads back
    temporary = stack.enter_context(atomic_path(path))
    return stack.enter_context(open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline=""))


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
