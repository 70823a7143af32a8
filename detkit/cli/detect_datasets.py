"""Detections as a data set that detkit, and other tools, can read: to correct them by hand, and to train on them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from detkit.cli.detect_report import Add, Seen, open_text
from detkit.data.annotations import Annotations
from detkit.data.convert import place_image
from detkit.data.dataset import Record
from detkit.data.image_file import IMAGE_SUFFIXES
from detkit.data.items import Item
from detkit.data.voc_writer import voc_xml
from detkit.data.yolo_writer import yolo_rows
from detkit.files import write_atomic, write_image
from detkit.names import LONGEST, fit_name, plain_name, unused_name

SPLIT = "detected"


@contextmanager
def write_voc(folder: Path, classes: Sequence[str]) -> Iterator[Add]:
    """A root in VOC layout, with one split, `detected`; scores are not in it.

    Images are linked, or copied where that fails; frames become images. Boxes thinner than a pixel are left out: in
    VOC's integer coordinates, which count the last pixel in, they would have no area.
    """
    taken: set[str] = set()
    with open_text(folder / "ImageSets" / "Main" / f"{SPLIT}.txt") as file:

        def add(seen: Seen) -> None:
            name = _name(seen, taken)
            item = _item(seen, name, folder / "JPEGImages", min_side=1.0)
            write_atomic(folder / "Annotations" / f"{name}.xml", voc_xml(item.file, item.size, item.objects(classes)))
            file.write(f"{name}\n")

        yield add


@contextmanager
def write_yolo(folder: Path, classes: Sequence[str]) -> Iterator[Add]:
    """A root in YOLO layout, with one split, `detected`, a list of images; as `write_voc`, but for thin boxes."""
    import yaml

    taken: set[str] = set()
    with open_text(folder / f"{SPLIT}.txt") as file:

        def add(seen: Seen) -> None:
            name = _name(seen, taken)
            item = _item(seen, name, folder / "images", min_side=0.001)
            write_atomic(folder / "labels" / f"{name}.txt", yolo_rows(item))
            file.write(f"./images/{item.file}\n")

        yield add
    content = {SPLIT: f"{SPLIT}.txt", "names": dict(enumerate(classes))}
    write_atomic(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _name(seen: Seen, taken: set[str]) -> str:
    """Return a name for an image, another than all `taken` also without their suffixes."""
    name = Path(seen.drawn).stem + ("" if seen.found.frame is None else f"-{seen.found.frame:06d}")
    # it stands in XML and lists, and needs room for the suffix of its image
    return unused_name(taken, fit_name(plain_name(name), LONGEST - 12))


def _item(seen: Seen, name: str, folder: Path, min_side: float) -> Item:
    """Bring an image to `folder` and return it with the detections whose sides are `min_side` pixels or more."""
    image = _place(seen, name, folder)
    boxes, labels = np.round(seen.found.boxes.double().numpy(), 3).astype(np.float32), seen.found.labels.numpy()
    keep = (boxes[:, 2:] - boxes[:, :2] >= min_side).all(1)
    boxes, labels = boxes[keep], labels[keep]
    record = Record(name, image, Annotations.of(boxes, labels), *seen.size)
    return Item(name, record)


def _place(seen: Seen, name: str, folder: Path) -> Path:
    # the data readers know fewer formats; and frames have no file
    path = seen.found.path if seen.found.frame is None else None
    if path is None or path.suffix.lower() not in IMAGE_SUFFIXES:
        target = folder / f"{name}{'.jpg' if path is None else '.png'}"
        write_image(target, seen.found.pixels)
        return target
    target = folder / (name + path.suffix)
    if not (target.exists() and target.samefile(path)):
        target.unlink(missing_ok=True)  # of an earlier command: a copy into it would reach what it is linked to
        place_image(path, target, "link")
    return target
