"""YOLO's label files, read into an index."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from detkit.data.annotations import FLAGS, AnnotatedImage, AnnotatedObject
from detkit.data.image_file import image_size
from detkit.data.index import Index, cached_index, fingerprint, make_index
from detkit.data.values import as_number
from detkit.errors import UserError
from detkit.files import read_text

FLAGS_NAME = "flags.json"
SLACK = 1e-4  # numbers beyond 0 to 1 by no more than this are taken for rounded
PIXEL_DECIMALS = 6  # a normalised number times the size is rounded so, and a whole pixel is whole again
Box = tuple[float, float, float, float]  # cx, cy, w, h in parts of the image
Row = tuple[int, int, Box]  # line from 1, class number, box
FIELDS = ("cx", "cy", "w", "h")


def parse_labels(text: str) -> tuple[list[Row], list[str]]:
    """Read `class cx cy w h` rows; `class x y x y x y ...`, a polygon, stands for the box around it. Never raises.

    Returns the rows and a line for each problem.
    """
    rows, problems = [], []
    for line, words in enumerate(map(str.split, text.splitlines()), 1):
        row = _row(words) if words else ""
        if isinstance(row, tuple):
            rows.append((line, *row))
        elif row:
            problems.append(f"line {line}: {row}")
    return rows, problems


def _row(words: Sequence[str]) -> tuple[int, Box] | str:
    """A row's class and box, or what is wrong with it."""
    numbers = [number for word in words if (number := as_number(word)) is not None]
    if len(numbers) < len(words):
        return f"{next(word for word in words if as_number(word) is None)!r} is not a number"
    label, *values = numbers
    if label < 0 or label != int(label):
        return f"class {words[0]!r} is not a whole number from 0 on"
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return f"{len(words)} numbers, not the 5 of class cx cy w h"
    for column, value in enumerate(values):
        if not -SLACK <= value <= 1 + SLACK:
            what = FIELDS[column] if len(values) == 4 else f"{'xy'[column % 2]} of point {column // 2 + 1}"
            return f"{what} is {words[column + 1]}; in parts of the image it lies between 0 and 1"
    if len(values) > 4:
        left, right, top, bottom = (pick(values[axis::2]) for axis in (0, 1) for pick in (min, max))
        values = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    cx, cy, w, h = values
    return int(label), (cx, cy, w, h)


def label_name(image: str) -> str:
    """Name of an image's label file: its folder `images` becomes `labels`, the last one if there are several; without
    any the label lies beside the image."""
    path = PurePosixPath(image)
    parts = list(path.parts)
    for level in range(len(parts) - 2, -1, -1):
        if parts[level] == "images":
            parts[level] = "labels"
            break
    return str(PurePosixPath(*parts).with_suffix(".txt"))


def read_yolo_index(root: Path, split: str, images: Sequence[str], names: dict[int, str] | None) -> Index:
    """Return the index of some images, named relative to `root`; see `cached_index`.

    names: of the classes; where there are none (None), labels are class numbers and the index has no `classes`. Its
    file is right when names, sizes and modification times of images and labels are what they were: images are looked
    into, since labels are in parts of their size.
    """
    files = [(image, _state(root / image), _state(root / label_name(image))) for image in images]
    digest = fingerprint([files, _state(root / FLAGS_NAME), names])
    return cached_index(root, f"yolo {split}", digest, Index, lambda: _build(root, images, names))


def _state(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def _build(root: Path, images: Sequence[str], names: dict[int, str] | None) -> Index:
    flags = read_flags(root)
    read = []
    for image in images:
        size = image_size(root / image) or (0, 0)
        name = label_name(image)
        rows, problems = _read_labels(root / name)
        entry = flags.get(name, _Flags(len(rows)))
        if rows and not all(size):
            problems.append("its image is missing or broken, so the boxes are of unknown size")
        if entry.rows != len(rows):
            text = f"{FLAGS_NAME} was written for {entry.rows} objects, here are {len(rows)}"
            problems.append(f"{text}; take {name} out of {FLAGS_NAME}")
        for line, label, _ in rows:
            if names is not None and label not in names:
                problems.append(f"line {line}: class {label} has no name; {len(names)} classes have")
        read.append(AnnotatedImage(image, _objects(rows, size, entry, names) if all(size) else [], size, problems))
    return make_index(read, None if names is None else list(names.values()))


def _read_labels(path: Path) -> tuple[list[Row], list[str]]:
    try:
        return parse_labels(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return [], []  # an image without objects
    except UnicodeDecodeError:
        return [], ["not a text file"]
    except OSError as error:
        return [], [str(error.strerror)]


@dataclass(frozen=True)
class _Flags:
    """What flags.json says of one label file; marks, by name, and areas of its objects, counted from 1."""

    rows: int
    marks: dict[str, frozenset[int]] = field(default_factory=dict)
    area: dict[int, float] = field(default_factory=dict)


def _objects(
    rows: list[Row], size: tuple[int, int], flags: _Flags, names: dict[int, str] | None
) -> list[AnnotatedObject]:
    """Objects in pixels; those of a class without a name are left out."""
    width, height = size
    objects = []
    for position, (line, label, (cx, cy, w, h)) in enumerate(rows, 1):
        edges = ((cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height)
        box = tuple(round(edge, PIXEL_DECIMALS) for edge in edges)
        name = label if names is None else names.get(label)
        marks: dict[str, Any] = {flag: position in positions for flag, positions in flags.marks.items()}
        if name is not None:
            area = flags.area.get(position, math.nan)
            objects.append(AnnotatedObject(name, box, number=line, area=area, **marks))
    return objects


def read_flags(root: Path) -> dict[str, _Flags]:
    """Read what YOLO's rows cannot hold, from the flags.json that detkit's converter writes, where there is one.

    {"labels/train/a.txt": {"rows": 3, "difficult": [2], "crowd": [], "truncated": [1, 2], "area": {"2": 310.5}}}:
    objects of the file by their position from 1. Raises UserError where it is something else.
    """
    path = root / FLAGS_NAME
    if not path.is_file():
        return {}
    try:
        return {name: _flags(entry) for name, entry in json.loads(read_text(path)).items()}
    except (ValueError, AttributeError, TypeError, KeyError):
        raise UserError(f"{path}: not what detkit's converter writes; remove it if its flags are not needed") from None


def _flags(entry: dict[str, Any]) -> _Flags:
    marks = {flag: frozenset(map(int, entry.get(flag, ()))) for flag in FLAGS}
    return _Flags(int(entry["rows"]), marks, {int(key): float(area) for key, area in entry.get("area", {}).items()})
