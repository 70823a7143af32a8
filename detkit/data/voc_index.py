"""VOC's XML files, read into an index."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers.expat import ErrorString

import numpy as np

from detkit.data.annotations import AnnotatedObject, Annotations
from detkit.data.index import Index, cached_index, fingerprint

EDGES = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VOCFile:
    """What one XML file says; `problems` holds a line for everything that could not be read."""

    filename: str
    size: tuple[int, int]
    objects: list[AnnotatedObject]
    problems: list[str]


def parse_annotation(content: bytes) -> VOCFile:
    """Read a VOC XML; never raises. An object may have <crowd> and <area>, which detkit's converter adds."""
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        line, column = error.position
        return VOCFile("", (0, 0), [], [f"not valid XML: {ErrorString(error.code)} (line {line}, column {column})"])
    if root.tag != "annotation":
        return VOCFile("", (0, 0), [], [f"not a VOC annotation: the outer element is <{root.tag}>"])
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
        corners = item.find("bndbox")
        if corners is None:
            problems.append(f"object {number} ({name}) has no <bndbox>")
            continue
        texts = [(corners.findtext(edge) or "").strip() for edge in EDGES]
        values = [value for text in texts if (value := _number(text)) is not None]
        if len(values) < len(EDGES):
            edge, text = next((edge, text) for edge, text in zip(EDGES, texts) if _number(text) is None)
            problems.append(f"object {number} ({name}): {edge} is {text!r}, not a number")
            continue
        xmin, ymin, xmax, ymax = values
        for low, high, axis in ((xmin, xmax, "x"), (ymin, ymax, "y")):
            if high < low:
                problems.append(f"object {number} ({name}): {axis}max {high:g} < {axis}min {low:g}")
        difficult, truncated, crowd = (
            (item.findtext(flag) or "0").strip() not in ("0", "") for flag in ("difficult", "truncated", "crowd")
        )
        area = _number(item.findtext("area") or "")
        area = math.nan if area is None else area
        box = (xmin - 1, ymin - 1, xmax, ymax)
        objects.append(AnnotatedObject(name, box, number, difficult, crowd, truncated, area))
    return VOCFile((root.findtext("filename") or "").strip(), (size[0], size[1]), objects, problems)


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
    contents = [parse_annotation((folder / name).read_bytes()) for name in files]
    objects = [item for content in contents for item in content.objects]
    classes = sorted({str(item.name) for item in objects})
    return Index(
        ids=np.array([name.removesuffix(".xml") for name in files], dtype=np.str_),
        files=np.array([content.filename for content in contents], dtype=np.str_),
        sizes=np.array([content.size for content in contents], dtype=np.int64).reshape(-1, 2),
        problems=np.array(["\n".join(content.problems) for content in contents], dtype=np.str_),
        first=np.cumsum([0, *(len(content.objects) for content in contents)]),
        objects=Annotations.from_objects(objects, classes),
        classes=np.array(classes, dtype=np.str_),
    )
