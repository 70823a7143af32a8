"""VOC's XML files, read into an index."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers.expat import ErrorString

import numpy as np

from detkit.data.index import Index, cached_index, fingerprint, object_arrays

EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VOCObject:
    """One object; number: its place in the file from 1; box: continuous xyxy; area: NaN where nothing is said."""

    number: int
    name: str
    box: tuple[float, float, float, float]
    difficult: bool
    truncated: bool
    crowd: bool
    area: float


@dataclass(frozen=True)
class Annotation:
    """What one XML file says; `problems` holds a line for everything that could not be read."""

    filename: str
    size: tuple[int, int]
    objects: list[VOCObject]
    problems: list[str]


def parse_annotation(content: bytes) -> Annotation:
    """Read a VOC XML; never raises. An object may have <crowd> and <area>, which detkit's converter adds."""
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
        difficult, truncated, crowd = (
            (item.findtext(flag) or "0").strip() not in ("0", "") for flag in ("difficult", "truncated", "crowd")
        )
        area = _number(item.findtext("area") or "")
        area = math.nan if area is None else area
        objects.append(VOCObject(number, name, (xmin - 1, ymin - 1, xmax, ymax), difficult, truncated, crowd, area))
    return Annotation((root.findtext("filename") or "").strip(), (size[0], size[1]), objects, problems)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_index(root: Path) -> Index:
    """Return the index of all annotations under `root`, in the order of their names; see `cached_index`.

    Its file is right when names, sizes and modification times of all XML files are what they were.
    """
    folder = root / "Annotations"
    with os.scandir(folder) as entries:
        files = sorted((e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in entries if e.name.endswith(".xml"))
    return cached_index(root, "", fingerprint(files), Index, lambda: _build(folder, [name for name, _, _ in files]))


def _build(folder: Path, files: list[str]) -> Index:
    found = [parse_annotation((folder / name).read_bytes()) for name in files]
    classes = sorted({item.name for annotation in found for item in annotation.objects})
    place = {name: row for row, name in enumerate(classes)}
    objects = [
        (item.number, place[item.name], item.box, item.difficult, item.crowd, item.truncated, item.area)
        for annotation in found
        for item in annotation.objects
    ]
    return Index(
        ids=np.array([name[: -len(".xml")] for name in files], dtype=np.str_),
        files=np.array([annotation.filename for annotation in found], dtype=np.str_),
        sizes=np.array([annotation.size for annotation in found], dtype=np.int64).reshape(-1, 2),
        problems=np.array(["\n".join(annotation.problems) for annotation in found], dtype=np.str_),
        first=np.cumsum([0, *(len(annotation.objects) for annotation in found)]),
        classes=np.array(classes, dtype=np.str_),
        **object_arrays(objects),
    )
