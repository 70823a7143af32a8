"""What is wrong with a data set: every problem, with file and object number."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detkit.data.photo import decode_photo
from detkit.data.voc import check_layout, find_photo, photo_names, read_split
from detkit.data.voc_index import Index, read_index
from detkit.errors import UserError, did_you_mean


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong in `file`; object: its number in the file from 1, 0 where no single object is meant."""

    file: str
    object: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: " + (f"object {self.object}: " if self.object else "") + self.text


@dataclass(frozen=True)
class Report:
    """Outcome of a check: the problems, sorted by file, and what was looked at."""

    problems: list[Problem]
    images: int
    objects: int
    splits: tuple[str, ...]


def check_root(
    root: Path,
    splits: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Look at every listed image and annotation of one root.

    splits: default all plain ones (not VOC's files for one class). classes: default those of the annotations. A problem
    is: a split that is missing, empty or lists an image twice; a missing or unreadable annotation or photo; a class
    that is not in `classes`; a box with max < min, that reaches beyond the image or starts before pixel 1; an object
    twice in a file; a photo of another size than its XML says; the same photo under two names. Raises UserError where
    `root` is not in VOC layout at all.
    """
    check_layout(root)
    index = read_index(root)
    known = index.rows()
    problems: list[Problem] = []
    listed: dict[str, None] = {}
    splits = tuple(splits) if splits is not None else plain_splits(root, index)
    if not splits:
        raise UserError(f"{root / 'ImageSets' / 'Main'} holds no split; it should hold train.txt or the like")
    for split in splits:
        listed |= dict.fromkeys(_check_split(root, split, known, problems))
    files = np.array(sorted(known[name] for name in listed if name in known), dtype=np.int64)
    objects = _check_objects(root, index, files, classes, problems)
    _check_photos(root, index, list(listed), known, problems, progress)
    return Report(sorted(problems), len(listed), objects, splits)


def plain_splits(root: Path, index: Index) -> tuple[str, ...]:
    """Names of the splits of a root without VOC's files for one class, such as cat_train."""
    names = sorted(path.stem for path in (root / "ImageSets" / "Main").glob("*.txt"))
    return tuple(name for name in names if name.rpartition("_")[0] not in set(index.classes.tolist()))


def _check_split(root: Path, split: str, known: dict[str, int], problems: list[Problem]) -> list[str]:
    path = f"ImageSets/Main/{split}.txt"
    try:
        ids = read_split(root, split, known)
    except UserError as error:
        problems.append(Problem(path, 0, "split", str(error).removeprefix(f"{root / path}: ")))
        return []
    for name, count in Counter(ids).items():
        if count > 1:
            problems.append(Problem(path, 0, "duplicate image", f"lists {name} {count} times"))
        if name not in known:
            problems.append(Problem(f"Annotations/{name}.xml", 0, "missing file", f"missing, and {split} lists it"))
    return ids


def _check_objects(
    root: Path, index: Index, files: np.ndarray, classes: Sequence[str] | None, problems: list[Problem]
) -> int:
    """Problems of the annotations alone; returns the number of objects."""
    names = index.classes.tolist()
    count = 0
    for f in files.tolist():
        xml = f"Annotations/{index.ids[f]}.xml"
        for line in str(index.problems[f]).splitlines():
            # the reader's own words: "object 2 (cat): xmax 8 < xmin 9", or a line on the whole file
            about = re.fullmatch(r"object (\d+)(?: \((.*?)\))?:? (.*)", line)
            if about is None:
                problems.append(Problem(xml, 0, "broken file", line))
            else:
                text = f"{about[2]}: {about[3]}" if about[2] else about[3]
                problems.append(Problem(xml, int(about[1]), "broken box", text))
        if not index.sizes[f].all() and not index.problems[f]:
            problems.append(Problem(xml, 0, "size", "no <size> of the image"))
        seen: dict[tuple, int] = {}
        for item in range(index.first[f], index.first[f + 1]):
            count += 1
            number, name = int(index.number[item]), names[index.names[item]]
            corners = tuple(index.corners[item].tolist())
            if classes is not None and name not in classes:
                text = f"class {name!r} is not in the list{did_you_mean(name, classes)}"
                problems.append(Problem(xml, number, "unknown class", text))
            first = seen.setdefault((name, corners), number)
            if first != number:
                problems.append(Problem(xml, number, "duplicate object", f"the same {name} as object {first}"))
            problems += _check_box(xml, number, name, corners, index.sizes[f].tolist())
    return count


def _check_box(xml: str, number: int, name: str, corners: tuple[float, ...], size: list[int]) -> list[Problem]:
    xmin, ymin, xmax, ymax = corners
    if xmax < xmin or ymax < ymin:
        return []  # the reader has already said so
    found = []
    for axis, low, high, side in (("x", xmin, xmax, size[0]), ("y", ymin, ymax, size[1])):
        if low < 1:
            found.append(f"{axis}min {low:g} is before the first pixel, which is 1")
        if side and high > side:
            found.append(f"{axis}max {high:g} is beyond the image's {side} pixels")
    return [Problem(xml, number, "box outside", f"{name}: {text}") for text in found]


def _check_photos(
    root: Path,
    index: Index,
    names: list[str],
    known: dict[str, int],
    problems: list[Problem],
    progress: Callable[[int, int], None] | None,
) -> None:
    existing = photo_names(root)

    def look(name: str) -> tuple[Path, str, tuple[int, int] | None, str]:
        """Return the path, why it cannot be read, its (width, height), and a digest of its bytes."""
        row = known.get(name)
        size = (int(index.sizes[row, 0]), int(index.sizes[row, 1])) if row is not None else None
        path = find_photo(root, name, str(index.photos[row]) if row is not None else "", existing)
        if path.name not in existing:
            return path, "missing", None, ""
        try:
            height, width = decode_photo(path, size).shape[:2]
        except UserError as error:
            return path, str(error).partition(": ")[2], None, ""
        return path, "", (width, height), hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()

    first: dict[str, str] = {}
    # threads are enough: decoding and hashing release the interpreter lock
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, (name, (path, reason, size, digest)) in enumerate(zip(names, pool.map(look, names)), 1):
            if progress is not None:
                progress(done, len(names))
            file = f"JPEGImages/{path.name}"
            if reason:
                kind = "missing file" if reason == "missing" else "unreadable image"
                problems.append(Problem(file, 0, kind, reason))
                continue
            row = known.get(name)
            stated = tuple(index.sizes[row].tolist()) if row is not None else (0, 0)
            if all(stated) and size != stated:
                text = f"the photo is {size[0]}x{size[1]}, its XML says {stated[0]}x{stated[1]}"  # pyright: ignore
                problems.append(Problem(file, 0, "size", text))
            twin = first.setdefault(digest, name)
            if twin != name:
                problems.append(Problem(file, 0, "duplicate image", f"the same file as {twin}"))
