"""Writer of data sets in VOC layout."""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from detkit.data.items import Item, Splits, plain


def write_voc(folder: Path, classes: Sequence[str], splits: Splits) -> dict[str, str]:
    """Write Annotations and ImageSets/Main below `folder`; return where the image of each item belongs.

    Boxes become 1-based inclusive pixels again; corners between pixels keep their decimals. Crowds and areas that are
    not the box's become <crowd> and <area>, which VOC's own readers pass by.
    """
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    items = {item.name: item for split_items in splits.values() for item in split_items}
    for item in items.values():
        (folder / "Annotations" / f"{item.name}.xml").write_text(voc_xml(item, classes), encoding="utf-8")
    for split, split_items in splits.items():
        text = "".join(f"{item.name}\n" for item in split_items)
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")
    return {item.name: f"JPEGImages/{item.file}" for item in items.values()}


def voc_xml(item: Item, classes: Sequence[str]) -> str:
    """Return the annotation file of one image."""
    objects = item.record.annotations
    lines = [
        "<annotation>",
        f"\t<filename>{escape(item.file)}</filename>",
        f"\t<size><width>{item.size[0]}</width><height>{item.size[1]}</height><depth>3</depth></size>",
    ]
    flags = zip(objects.truncated, objects.difficult, objects.crowd)
    for label, box, (truncated, difficult, crowd), area in zip(
        objects.labels.tolist(), item.boxes().tolist(), flags, item.annotated_areas()
    ):
        corners = (box[0] + 1, box[1] + 1, box[2], box[3])
        edges = "".join(f"<{e}>{plain(v)}</{e}>" for e, v in zip(("xmin", "ymin", "xmax", "ymax"), corners))
        more = f"<crowd>{crowd:d}</crowd>" * bool(crowd) + ("" if area is None else f"<area>{plain(area)}</area>")
        lines += [
            "\t<object>",
            f"\t\t<name>{escape(str(classes[label]))}</name>",
            f"\t\t<truncated>{truncated:d}</truncated><difficult>{difficult:d}</difficult>{more}",
            f"\t\t<bndbox>{edges}</bndbox>",
            "\t</object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])
