"""Writer of data sets in VOC layout."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from detkit.data.annotations import AnnotatedObject
from detkit.data.items import Splits, plain, unique_items
from detkit.data.voc_index import EDGES
from detkit.errors import UserError

NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # XML 1.0, section 2.2


def write_voc(folder: Path, classes: Sequence[str], splits: Splits) -> dict[str, str]:
    """Write Annotations and ImageSets/Main below `folder`; return where the image of each item belongs.

    Boxes become 1-based inclusive pixels again; corners between pixels keep their decimals. Crowds and areas that are
    not the box's become <crowd> and <area>, which VOC's own readers pass by. Raises UserError for a class that no XML
    can name.
    """
    for name in classes:
        if NOT_XML.search(name):
            raise UserError(f"class {name!r} has a character that XML cannot hold; convert to coco or yolo")
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for item in unique_items(splits):
        xml = voc_xml(item.file, item.size, item.objects(classes))
        (folder / "Annotations" / f"{item.name}.xml").write_text(xml, encoding="utf-8")
    for split, split_items in splits.items():
        text = "".join(f"{item.name}\n" for item in split_items)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")
    return {item.name: f"JPEGImages/{item.file}" for item in unique_items(splits)}


def voc_xml(file: str, size: tuple[int, int], objects: Sequence[AnnotatedObject]) -> str:
    """Return the annotation file of the image `file` of `size` (width, height)."""
    lines = [
        "<annotation>",
        f"\t<filename>{escape(file)}</filename>",
        f"\t<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>",
    ]
    for item in objects:
        left, top, right, bottom = item.box
        edges = "".join(f"<{e}>{plain(v)}</{e}>" for e, v in zip(EDGES, (left + 1, top + 1, right, bottom)))
        crowd = "<crowd>1</crowd>" if item.crowd else ""
        area = "" if math.isnan(item.area) else f"<area>{plain(item.area)}</area>"
        flags = f"<truncated>{item.truncated:d}</truncated><difficult>{item.difficult:d}</difficult>"
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(str(item.name))}</name>",
            f"\t\t{flags}{crowd}{area}",
            f"\t\t<bndbox>{edges}</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])
