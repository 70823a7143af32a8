"""VOC's XML files, read into an index."""

import codecs
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers.expat import ErrorString

from detkit.data.annotations import FLAGS, AnnotatedImage, AnnotatedObject, Fault
from detkit.data.finding import Finder
from detkit.data.index import Index, cached_index, fingerprint, make_index
from detkit.data.values import as_area, as_flag, as_name, as_number, as_size

EDGES = ("xmin", "ymin", "xmax", "ymax")
# first bytes of an XML -> its encoding; byte order marks, and UTF-16 without one
STARTS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
DECLARED = r"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([^"'>]*)["']"""


def parse_annotation(content: bytes) -> AnnotatedImage:
    """Read a VOC XML; never raises. An object may have <crowd> and <area>, which detkit's converter adds."""
    try:
        root = ElementTree.fromstring(_decode(content))
    except ElementTree.ParseError as error:
        line, column = error.position
        text = f"not valid XML: {ErrorString(error.code)} (line {line}, column {column})"
        return AnnotatedImage("", faults=[Fault(0, text)])
    except ValueError as error:
        return AnnotatedImage("", faults=[Fault(0, f"not valid XML: {error}")])
    if root.tag != "annotation":
        return AnnotatedImage("", faults=[Fault(0, f"not a VOC annotation: the outer element is <{root.tag}>")])
    size = as_size(root.findtext("size/width"), root.findtext("size/height"))
    objects, faults = [], []
    for number, element in enumerate(root.findall("object"), 1):
        made = _object(element, number)
        if isinstance(made, AnnotatedObject):
            objects.append(made)
        else:
            faults.append(Fault(number, made))
    return AnnotatedImage(root.findtext("filename") or "", objects, size, faults)


def _decode(content: bytes) -> str:
    """The text of an XML: by its byte order mark, else as it declares, else UTF-8. Raises ValueError, in one line."""
    start = next((encoding for mark, encoding in STARTS.items() if content.startswith(mark)), None)
    head = content[:200].decode(start or "latin-1", "ignore")
    match = re.match(DECLARED, head)
    declared = match[1] if match else None
    try:
        encoding = start or codecs.lookup(declared or "utf-8").name
        if start and declared and codecs.lookup(declared).name[:6] != start[:6].rstrip("-"):
            raise ValueError(f"it declares the encoding {declared}, but begins as {start[:6].rstrip('-')}")
        return content.decode(encoding)
    except LookupError:
        raise ValueError(f"unknown encoding {declared!r}") from None
    except UnicodeError:
        how = f"{declared}, as it declares" if declared else f"{start or 'UTF-8'}, and declares nothing else"
        raise ValueError(f"it is no text in {how}") from None


def _object(element: ElementTree.Element, number: int) -> AnnotatedObject | str:
    """An object, or what is wrong with it."""
    parts = {child.tag: child for child in element}
    name = as_name(parts["name"].text) if "name" in parts else ""
    if not name:
        return "no <name>"
    if "bndbox" not in parts:
        return f"{name}: no <bndbox>"
    corners = {child.tag: child.text for child in parts["bndbox"]}
    for parent, found in ((element, parts), (parts["bndbox"], corners)):
        if len(found) < len(parent):  # something is there twice, as the parts of a person are
            counts = Counter(child.tag for child in parent)
            for tag in ("name", "bndbox", *FLAGS, *EDGES):
                if counts[tag] > 1:
                    return f"{name}: {counts[tag]} of <{tag}>, not one"
    numbers = []
    for edge in EDGES:
        value = as_number(corners.get(edge))
        if value is None:
            return f"{name}: {edge} is {as_name(corners.get(edge))[:60]!r}, not a number"
        numbers.append(value)
    xmin, ymin, xmax, ymax = numbers
    for low, high, axis in ((xmin, xmax, "x"), (ymin, ymax, "y")):
        if high < low:
            return f"{name}: {axis}max {high:g} < {axis}min {low:g}"
    flags: dict[str, Any] = {}
    for flag in FLAGS:
        if flag in parts:
            flags[flag] = as_flag(parts[flag].text)
            if flags[flag] is None:
                return f"{name}: {flag} is {str(parts[flag].text)[:60]!r}, neither 0 (no, false) nor 1 (yes, true)"
    area = as_area(parts["area"].text) if "area" in parts else math.nan
    if area is None:
        return f"{name}: area is {str(parts['area'].text)[:60]!r}, no number of square pixels"
    return AnnotatedObject(name, (xmin - 1, ymin - 1, xmax, ymax), area=area, number=number, **flags)


def read_index(finder: Finder, folder: str, names: Sequence[str]) -> Index:
    """Return the index of XML files, named relative to a folder, in their order; see `cached_index`.

    Its file is right when names, sizes and modification times of all of them are what they were.
    """
    paths = [f"{folder}/{name}" for name in names]
    digest = fingerprint([folder[len(finder.root) :], [(n, finder.state(p)) for n, p in zip(names, paths)]])
    return cached_index(Path(finder.root), "", digest, Index, lambda: _build(paths, [name[:-4] for name in names]))


def _build(paths: Sequence[str], ids: Sequence[str]) -> Index:
    images = [_read(path) for path in paths]
    classes = sorted({str(item.name) for image in images for item in image.objects})
    return make_index(images, classes, ids)


def _read(path: str) -> AnnotatedImage:
    try:
        return parse_annotation(Path(path).read_bytes())
    except OSError as error:
        return AnnotatedImage("", faults=[Fault(0, str(error.strerror))])
