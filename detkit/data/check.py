"""What is wrong with a data set: every problem, with file and object number."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detkit.data.formats import DATASETS, find_format, find_splits
from detkit.data.image_file import decode_image
from detkit.data.source import Problem, Source
from detkit.data.values import path_below
from detkit.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Report:
    """Outcome of a check: the problems, sorted by file, what was looked at, and lines on what users should know.

    unreadable: those of images that are not there or cannot be decoded, which opening a data set does not find.
    """

    problems: list[Problem]
    unreadable: list[Problem]
    images: int
    objects: int
    splits: tuple[str, ...]
    notes: tuple[str, ...]


def check_root(
    root: Path,
    splits: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
    format_name: str = "auto",
) -> Report:
    """Look at every listed image and annotation of one root.

    splits: default all (without VOC's files for one class). classes: default those of the annotations. format_name: the
    format, see `find_format`. A problem is: a split that is missing, empty or lists an image twice; a missing or
    unreadable annotation or image; labels without an image; a class that is not in `classes`; a box that is no box, has
    no area or reaches beyond the image; an object twice in a file; an image of another size than its annotation says;
    the same image under two names; and of a data set that has masks, an object without one, a mask that cannot be read,
    is empty, reaches beyond the image or is not where its box is, and one of no object. Raises UserError where `root`
    is no data set at all.
    """
    kind = DATASETS[find_format(root, format_name)]
    splits = tuple(splits) if splits is not None else tuple(find_splits(root, format_name))
    problems: set[Problem] = set()
    sources: list[Source] = []
    for split in splits:
        try:
            (source,) = kind.open_sources([(root, split)])
        except UserError as error:
            file = kind.split_file.format(split)
            problems.add(Problem(file, 0, "split", str(error).removeprefix(f"{root / file}: ")))
            continue
        sources.append(source)
        problems.update(source.problems)
        problems.update(source.strays())
        if not len(source.rows):
            problems.add(Problem(kind.split_file.format(split), 0, "split", "the split is empty"))
    # an image of several splits is looked at once
    images: dict[str, list[tuple[Source, int]]] = {}
    for source in sources:
        for row in source.rows.tolist():
            images.setdefault(source.paths[row], []).append((source, row))
    for known in images.values():
        for source, row in {source.file(row): (source, row) for source, row in known}.values():
            _check_objects(source, row, classes, problems)
    _check_masks(images, problems)
    unreadable = _check_images(root, images, problems, progress)
    objects = sum(int(np.diff(source.index.first[row : row + 2])[0]) for (source, row), *_ in images.values())
    if images and not objects and not any(len(source.broken()) for source in sources):
        file = kind.split_file.format(sources[0].split)
        problems.add(Problem(file, 0, "no object", "there is no object in any image"))
    notes = dict.fromkeys(note for source in sources for note in source.notes)
    return Report(sorted(problems), unreadable, len(images), objects, splits, tuple(notes))


def _check_objects(source: Source, row: int, classes: Sequence[str] | None, problems: set[Problem]) -> None:
    """Problems of one image's annotations alone."""
    index, file, unit = source.index, source.file(row), source.unit
    objects, faults = index.objects, source.faults(row)
    problems.update(faults)
    size = source.sizes[row].tolist()
    if source.states_size and not index.stated[row] and not faults:
        problems.add(Problem(file, 0, "size", "no size of the image"))
    seen: dict[tuple, int] = {}
    for item in range(index.first[row], index.first[row + 1]):
        number, name = int(objects.number[item]), str(index.classes[objects.labels[item]])
        box = tuple(objects.boxes[item].tolist())
        if classes is not None and name not in classes:
            text = f"class {name!r} is not in the list{did_you_mean(name, classes)}"
            problems.add(Problem(file, number, "unknown class", text, unit))
        first = seen.setdefault((name, box), number)
        if first != number:
            problems.add(Problem(file, number, "duplicate object", f"the same {name} as {unit} {first}", unit))
        problems.update(_check_box(source, file, number, name, box, size))


def _check_box(
    source: Source, file: str, number: int, name: str, box: tuple[float, ...], size: list[int]
) -> list[Problem]:
    left, top, right, bottom = box
    faults = []
    for axis, low, high, side in (("x", left, right, size[0]), ("y", top, bottom, size[1])):
        first, last = max(low, 0.0), min(high, side or np.inf)
        # what is clipped has to have an area in float32, as it is trained on
        if high <= low or (last > first and np.float32(last) == np.float32(first)):
            text = f"{name}: the box is {right - left:g} wide and {bottom - top:g} high; it is left out"
            return [Problem(file, number, "empty box", text, source.unit)]
        if low < -source.slack or high <= 0:
            faults.append(f"{axis}min {low + source.origin:g} is before the first pixel, which is {source.origin}")
        if side and (high > side + source.slack or low >= side):
            faults.append(f"{axis}max {high:g} is beyond the image's {side} pixels")
    return [Problem(file, number, "box outside", f"{name}: {text}", source.unit) for text in faults]


def _check_masks(images: dict[str, list[tuple[Source, int]]], problems: set[Problem]) -> None:
    """Problems of masks, where a data set has any."""
    pairs = {source.file(row): (source, row) for known in images.values() for source, row in known}
    checks = {id(source): source.mask_check() for source, _ in pairs.values()}
    looked = [(file, source, row) for file, (source, row) in pairs.items() if checks[id(source)] is not None]

    def look(pair: tuple[str, Source, int]) -> list[Problem]:
        file, source, row = pair
        check = checks[id(source)]
        assert check is not None
        return [Problem(file, number, kind, text, source.unit) for number, kind, text in check(row)]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # files are decoded, which releases the interpreter lock
        for found in pool.map(look, looked):
            problems.update(found)


def _check_images(
    root: Path,
    images: dict[str, list[tuple[Source, int]]],
    problems: set[Problem],
    progress: Callable[[int, int], None] | None,
) -> list[Problem]:
    """Add problems of images; return those of images that cannot be read."""
    unreadable = []
    for source in {id(source): source for known in images.values() for source, _ in known}.values():
        for row, text in source.other_sizes().items():
            problems.add(Problem(path_below(source.paths[row], root), 0, "size", text))

    def look(path: str) -> tuple[str, str]:
        """Return why an image cannot be read, and a digest of its bytes."""
        if not os.path.isfile(path):
            return "missing", ""
        try:
            decode_image(Path(path))
        except UserError as error:
            return str(error).removeprefix(f"{path}: "), ""
        return "", image_digest(path)

    first: dict[str, str] = {}
    # threads are enough: decoding and hashing release the interpreter lock
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done, (path, (reason, digest)) in enumerate(zip(images, pool.map(look, images)), 1):
            if progress is not None:
                progress(done, len(images))
            file = path_below(path, root)
            if reason:
                kind = "missing file" if reason == "missing" else "unreadable image"
                unreadable.append(Problem(file, 0, kind, reason))
                continue
            twin = first.setdefault(digest, path)
            if twin != path:
                text = f"the same file as {path_below(twin, root)}"
                mine, others = ([source.split for source, _ in images[one]] for one in (path, twin))
                if {*mine} != {*others}:
                    text += f", which is of {', '.join(others)}; this one is of {', '.join(mine)}"
                problems.add(Problem(file, 0, "duplicate image", text))
    problems.update(unreadable)
    return unreadable


def image_digest(path: str) -> str:
    """Return a digest of the bytes of a file."""
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
