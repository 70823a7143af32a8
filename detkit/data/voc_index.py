"""The annotations of a VOC root, parsed once and kept in an index file, so that later starts are quick."""

import hashlib
import json
import math
import os
import stat
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers.expat import ErrorString

import numpy as np

from detkit.files import write_atomic

INDEX_NAME = ".detkit-index.npz"
INDEX_VERSION = 1
EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class Index:
    """All annotations of one root as flat arrays, as written: nothing clipped, nothing refused.

    ids: (F,) names of the XML files without suffix, sorted. photos: (F,) their <filename>. sizes: (F, 2) int64 width
    and height, 0 where missing. problems: (F,) lines that say what is wrong in the file, "" where nothing is.
    first: (F + 1,) int64, file f owns the objects first[f]:first[f + 1]. corners: (O, 4) float64 xmin, ymin, xmax,
    ymax, 1-based. number: (O,) the object's place in its file, from 1. names: (O,) index into classes.
    """

    ids: np.ndarray
    photos: np.ndarray
    sizes: np.ndarray
    problems: np.ndarray
    first: np.ndarray
    corners: np.ndarray
    number: np.ndarray
    names: np.ndarray
    difficult: np.ndarray
    truncated: np.ndarray
    classes: np.ndarray

    def rows(self) -> dict[str, int]:
        """Map each id to its place in the index."""
        return {str(name): row for row, name in enumerate(self.ids)}


@dataclass(frozen=True)
class Annotation:
    """What one XML file says; `problems` holds a line for everything that could not be read."""

    photo: str
    size: tuple[int, int]
    objects: list[tuple[int, str, tuple[float, float, float, float], bool, bool]]
    problems: list[str]


def parse_annotation(content: bytes) -> Annotation:
    """Read a VOC XML. Objects are (number from 1, class, corners 1-based, difficult, truncated); never raises."""
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        line, column = error.position
        return Annotation("", (0, 0), [], [f"not valid XML: {ErrorString(error.code)} (line {line}, column {column})"])
    if root.tag != "annotation":
        return Annotation("", (0, 0), [], [f"not a VOC annotation: the outer element is <{root.tag}>"])
    problems: list[str] = []
    size = []
    for key in ("width", "height"):
        value = _number(root.findtext(f"size/{key}") or "0")
        size.append(max(int(value), 0) if value is not None else 0)
    objects = []
    for number, item in enumerate(root.findall("object"), 1):
        name = (item.findtext("name") or "").strip()
        if not name:
            problems.append(f"object {number} has no <name>")
            continue
        box = item.find("bndbox")
        if box is None:
            problems.append(f"object {number} ({name}) has no <bndbox>")
            continue
        texts = [(box.findtext(edge) or "").strip() for edge in EDGES]
        corners = [value for text in texts if (value := _number(text)) is not None]
        if len(corners) < len(EDGES):
            edge, text = next((e, t) for e, t in zip(EDGES, texts) if _number(t) is None)
            problems.append(f"object {number} ({name}): {edge} is {text!r}, not a number")
            continue
        xmin, ymin, xmax, ymax = corners
        for low, high, axis in ((xmin, xmax, "x"), (ymin, ymax, "y")):
            if high < low:
                problems.append(f"object {number} ({name}): {axis}max {high:g} < {axis}min {low:g}")
        flags = [(item.findtext(flag) or "0").strip() not in ("0", "") for flag in ("difficult", "truncated")]
        objects.append((number, name, (xmin, ymin, xmax, ymax), *flags))
    return Annotation((root.findtext("filename") or "").strip(), (size[0], size[1]), objects, problems)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_index(root: Path) -> Index:
    """Return the index of all annotations under `root`, from its index file where that is still right.

    It is right when names, sizes and modification times of all XML files are what they were. The index file is
    written into `root`, or into the user's cache folder where `root` is read-only.
    """
    folder = root / "Annotations"
    with os.scandir(folder) as entries:
        files = sorted((e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in entries if e.name.endswith(".xml"))
    fingerprint = hashlib.blake2b(json.dumps([INDEX_VERSION, files]).encode(), digest_size=16).hexdigest()
    places = _index_places(root)
    for place in places:
        index = _load_index(place, fingerprint)
        if index is not None:
            return index
    index = _build_index(folder, [name for name, _, _ in files])
    buffer = BytesIO()
    np.savez(buffer, fingerprint=np.array(fingerprint), **vars(index))
    for place in places:
        try:
            write_atomic(place, buffer.getvalue())
            break
        except OSError:
            continue  # read-only or full: an index is a convenience, so reading goes on without it
    return index


def _index_places(root: Path) -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detkit"
    key = hashlib.blake2b(str(root.resolve()).encode(), digest_size=8).hexdigest()
    places = [cache / f"index-{key}.npz"]
    # the mode is looked at because root may write anywhere: a folder marked read-only is left as it is
    if root.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) and os.access(root, os.W_OK):
        places.insert(0, root / INDEX_NAME)
    return places


def _load_index(path: Path, fingerprint: str) -> Index | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["fingerprint"]) != fingerprint:
                return None
            return Index(**{name: stored[name] for name in Index.__dataclass_fields__})
    except Exception:
        return None  # missing, or written by something else: it is simply made anew


def _build_index(folder: Path, files: list[str]) -> Index:
    found = [parse_annotation((folder / name).read_bytes()) for name in files]
    objects = [item for annotation in found for item in annotation.objects]
    classes = sorted({item[1] for item in objects})
    place = {name: row for row, name in enumerate(classes)}
    return Index(
        ids=np.array([name[: -len(".xml")] for name in files], dtype=np.str_),
        photos=np.array([annotation.photo for annotation in found], dtype=np.str_),
        sizes=np.array([annotation.size for annotation in found], dtype=np.int64).reshape(-1, 2),
        problems=np.array(["\n".join(annotation.problems) for annotation in found], dtype=np.str_),
        first=np.cumsum([0, *(len(annotation.objects) for annotation in found)]),
        corners=np.array([item[2] for item in objects], dtype=np.float64).reshape(-1, 4),
        number=np.array([item[0] for item in objects], dtype=np.int64),
        names=np.array([place[item[1]] for item in objects], dtype=np.int64),
        difficult=np.array([item[3] for item in objects], dtype=bool),
        truncated=np.array([item[4] for item in objects], dtype=bool),
        classes=np.array(classes, dtype=np.str_),
    )
