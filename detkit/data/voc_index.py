"""VOC's XML files, read into an index."""

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers.expat import ErrorString

from detkit.data.annotations import FLAGS, AnnotatedImage, AnnotatedObject
from detkit.data.index import Index, cached_index, fingerprint, make_index
from detkit.data.values import as_area, as_flag, as_name, as_number, as_path, as_size

EDGES = ("xmin", "ymin", "xmax", "ymax")


def parse_annotation(content: bytes) -> AnnotatedImage:
    """Read a VOC XML; never raises. An object may have <crowd> and <area>, which detkit's converter adds."""
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        line, column = error.position
        return AnnotatedImage("", problems=[f"not valid XML: {ErrorString(error.code)} (line {line}, column {column})"])
    if root.tag != "annotation":
        return AnnotatedImage("", problems=[f"not a VOC annotation: the outer element is <{root.tag}>"])
    size = as_size(root.findtext("size/width"), root.findtext("size/height"))
    objects, problems = [], []
    for number, item in enumerate(root.findall("object"), 1):
        name = as_name(item.findtext("name"))
        corners = item.find("bndbox")
        if not name or corners is None:
            missing = f"({name}) has no <bndbox>" if name else "has no <name>"
            problems.append(f"object {number} {missing}")
            continue
        texts = [as_name(corners.findtext(edge)) for edge in EDGES]
        values = [value for text in texts if (value := as_number(text)) is not None]
        if len(values) < len(EDGES):
            edge, text = next((edge, text) for edge, text in zip(EDGES, texts) if as_number(text) is None)
            problems.append(f"object {number} ({name}): {edge} is {text!r}, not a number")
            continue
        xmin, ymin, xmax, ymax = values
        for low, high, axis in ((xmin, xmax, "x"), (ymin, ymax, "y")):
            if high < low:
                problems.append(f"object {number} ({name}): {axis}max {high:g} < {axis}min {low:g}")
        flags: dict[str, Any] = {flag: as_flag(item.findtext(flag)) for flag in FLAGS}
        area = as_area(item.findtext("area"))
        box = (xmin - 1, ymin - 1, xmax, ymax)
        objects.append(AnnotatedObject(name, box, area=area, number=number, **flags))
    return AnnotatedImage(as_path(as_name(root.findtext("filename"))), objects, size, problems)


def read_index(root: Path) -> Index:
    """Return the index of all annotations under `root`, in the order of their names; see `cached_index`.

    Its file is right when names, sizes and modification times of all XML files are what they were.
    """
    folder = root / "Annotations"
    with os.scandir(folder) as entries:
        files = sorted((e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in entries if e.name.endswith(".xml"))
    return cached_index(root, "", fingerprint(files), Index, lambda: _build(folder, [name for name, _, _ in files]))


def _build(folder: Path, files: list[str]) -> Index:
    images = [parse_annotation((folder / name).read_bytes()) for name in files]
    classes = sorted({str(item.name) for image in images for item in image.objects})
    return make_index(images, classes, [name.removesuffix(".xml") for name in files])
