"""YOLO's label files, read into an index."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.annotations import FLAGS, AnnotatedImage, AnnotatedObject, Fault
from detkit.data.finding import Finder
from detkit.data.index import Index, cached_index, fingerprint, make_index
from detkit.data.values import as_area, as_number, as_whole, path_below
from detkit.errors import UserError
from detkit.files import read_text

FLAGS_NAME = "flags.json"
SLACK = 1e-4  # numbers beyond 0 to 1 by no more than this are taken for rounded
PIXEL_DECIMALS = 6  # a normalised number times the size is rounded so, and a whole pixel is whole again
MAX_CLASSES = 100_000  # a class number beyond is a mistake: without names, all numbers up to the highest are classes
Box = tuple[float, float, float, float]  # cx, cy, w, h in parts of the image
Row = tuple[int, int, Box]  # line from 1, class number, box
FIELDS = ("cx", "cy", "w", "h")


def parse_labels(text: str, point_numbers: int = 0) -> tuple[list[Row], list[Fault]]:
    """Read `class cx cy w h` rows. Never raises.

    point_numbers: how many numbers of key points may follow, which are passed by; where none are declared (0), a row of
    other lengths, `class x y x y x y ...`, is a polygon and stands for the box around it. Returns rows and faults.
    """
    rows, faults = [], []
    for line, words in enumerate(map(str.split, text.splitlines()), 1):
        row = _row(words, point_numbers) if words else ""
        if isinstance(row, tuple):
            rows.append((line, *row))
        elif row:
            faults.append(Fault(line, row))
    return rows, faults


def _row(words: Sequence[str], point_numbers: int) -> tuple[int, Box] | str:
    """A row's class and box, or what is wrong with it."""
    numbers = [number for word in words if (number := as_number(word)) is not None]
    if len(numbers) < len(words):
        return f"{next(word for word in words if as_number(word) is None)[:60]!r} is not a number"
    label, *values = numbers
    if label < 0 or label != int(label):
        return f"class {words[0][:60]!r} is not a whole number from 0 on"
    if label >= MAX_CLASSES:
        return f"class {words[0][:60]} is beyond the limit of {MAX_CLASSES:,} classes"
    is_polygon = not point_numbers and len(values) >= 6 and len(values) % 2 == 0
    if len(values) not in (4, 4 + point_numbers) and not is_polygon:
        points = f", nor the {5 + point_numbers} with the key points of kpt_shape" if point_numbers else ""
        return f"{len(words)} numbers, not the 5 of class cx cy w h{points}"
    if not is_polygon:
        values = values[:4]
    for column, value in enumerate(values):
        if not -SLACK <= value <= 1 + SLACK:
            what = f"{'xy'[column % 2]} of point {column // 2 + 1}" if is_polygon else FIELDS[column]
            return f"{what} is {words[column + 1]}; in parts of the image it lies between 0 and 1"
    if is_polygon:
        left, right, top, bottom = (pick(values[axis::2]) for axis in (0, 1) for pick in (min, max))
        values = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    cx, cy, w, h = values
    return int(label), (cx, cy, w, h)


def label_name(image: str) -> str:
    """Name of an image's label file: its folder `images` becomes `labels`, the last one if there are several; without
    any the label lies beside the image."""
    folder, _, name = image.rpartition("/")
    parts = folder.split("/")
    for level in range(len(parts) - 1, -1, -1):
        if parts[level] == "images":
            parts[level] = "labels"
            break
    return "/".join([*parts, ""] if folder or image.startswith("/") else []) + os.path.splitext(name)[0] + ".txt"


def read_yolo_index(
    finder: Finder,
    key: str,
    files: Sequence[str],
    labels: Sequence[str],
    names: dict[int, str] | None,
    point_numbers: int,
) -> Index:
    """Return the index of images, boxes (cx, cy, w, h) in parts of them as written; see `cached_index`.

    files: the images, relative to the root where they are below. labels: the paths of their label files. names: of the
    classes; where there are none (None), labels are class numbers and the index has no `classes`. point_numbers: see
    `parse_labels`. Its file is right when names, sizes and modification times of the labels are what they were.
    """
    flags_path = finder.below(FLAGS_NAME)
    states = [(file, label[len(finder.root) :], finder.state(label)) for file, label in zip(files, labels)]
    digest = fingerprint([states, finder.state(flags_path), [*names.items()] if names else None, point_numbers])
    root = Path(finder.root)

    def build() -> Index:
        flags = read_flags(root)
        images = [
            _image(file, path, flags.get(path_below(path, root)), names, point_numbers)
            for file, path in zip(files, labels)
        ]
        return make_index(images, None if names is None else list(names.values()))

    return cached_index(root, f"yolo {key}", digest, Index, build)


def _image(
    file: str, path: str, flags: "_Flags | None", names: dict[int, str] | None, point_numbers: int
) -> AnnotatedImage:
    rows, faults = _read_labels(Path(path), point_numbers)
    if flags is not None and flags.rows != len(rows):
        text = f"{FLAGS_NAME} was written for {flags.rows} objects, here are {len(rows)}"
        faults.append(Fault(0, f"{text}; take this file out of {FLAGS_NAME}"))
    flags = flags or _Flags(len(rows))
    objects = []
    for position, (line, label, box) in enumerate(rows, 1):
        name = label if names is None else names.get(label)
        if name is None:
            faults.append(Fault(line, f"class {label} has no name; {len(names or ())} classes have"))
            continue
        marks: dict[str, Any] = {flag: position in positions for flag, positions in flags.marks.items()}
        objects.append(AnnotatedObject(name, box, number=line, area=flags.area.get(position, math.nan), **marks))
    return AnnotatedImage(file, objects, (0, 0), faults)


def _read_labels(path: Path, point_numbers: int) -> tuple[list[Row], list[Fault]]:
    try:
        return parse_labels(path.read_text(encoding="utf-8-sig"), point_numbers)
    except FileNotFoundError:
        return [], []  # an image without objects
    except UnicodeDecodeError:
        return [], [Fault(0, "not a text file")]
    except OSError as error:
        return [], [Fault(0, str(error.strerror))]


def to_pixels(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Turn boxes (N, 4) cx, cy, w, h in parts of images of sizes (N, 2) width, height into xyxy in pixels."""
    half, sizes = boxes[:, 2:] / 2, sizes.astype(np.float64)
    edges = np.concatenate([(boxes[:, :2] - half) * sizes, (boxes[:, :2] + half) * sizes], 1)
    return edges.round(PIXEL_DECIMALS)


@dataclass(frozen=True)
class _Flags:
    """What flags.json says of one label file; marks, by name, and areas of its objects, counted from 1."""

    rows: int
    marks: dict[str, frozenset[int]] = field(default_factory=dict)
    area: dict[int, float] = field(default_factory=dict)


def read_flags(root: Path) -> dict[str, _Flags]:
    """Read what YOLO's rows cannot hold, from the flags.json that detkit's converter writes, where there is one.

    {"labels/train/a.txt": {"rows": 3, "difficult": [2], "crowd": [], "truncated": [1, 2], "area": {"2": 310.5}}}:
    objects of the file by their position from 1. Raises UserError where it is something else.
    """
    path = root / FLAGS_NAME
    if not path.is_file():
        return {}
    what = "not what detkit's converter writes; remove it if its flags are not needed"
    try:
        entries = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: {what}") from None
    if not isinstance(entries, dict):
        raise UserError(f"{path}: {what}")
    flags = {}
    for name, entry in entries.items():
        flags[name] = made = _flags(entry)
        if isinstance(made, str):
            raise UserError(f"{path}: {what}: {name}: {made}")
    return flags


def _flags(entry: Any) -> _Flags | str:
    """The entry of a label file, or what is wrong with it."""
    if not isinstance(entry, dict) or not entry.keys() <= {"rows", "area", *FLAGS}:
        return f"an entry has the keys rows, {', '.join(FLAGS)} and area"
    rows = entry.get("rows")
    if type(rows) is not int or rows < 0:
        return f"rows is {json.dumps(rows)[:60]}, not a number of objects"
    for flag in FLAGS:
        positions = entry.get(flag, [])
        if not isinstance(positions, list) or not all(type(one) is int and 1 <= one <= rows for one in positions):
            return f"{flag} is {json.dumps(positions)[:60]}, not a list of positions from 1 to {rows}"
    area = entry.get("area", {})
    areas = (
        {as_whole(key): None if value is None else as_area(value) for key, value in area.items()}
        if isinstance(area, dict)
        else {None: None}
    )
    if not all(key is not None and 1 <= key <= rows and value is not None for key, value in areas.items()):
        return f"area is {json.dumps(area)[:60]}, not square pixels of positions from 1 to {rows}"
    return _Flags(rows, {flag: frozenset(entry.get(flag, ())) for flag in FLAGS}, areas)  # type: ignore[arg-type]
