"""Detections as a data set that detkit, and other tools, can read: to correct them by hand, and to train on them."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detkit.cli.detect_report import Seen
from detkit.data.annotations import Annotations
from detkit.data.convert import place_image
from detkit.data.dataset import Record
from detkit.data.image_file import IMAGE_SUFFIXES
from detkit.data.items import Item
from detkit.data.voc_writer import voc_xml
from detkit.data.yolo_writer import yolo_rows
from detkit.files import atomic_path, write_atomic

if TYPE_CHECKING:
    from detkit.structures import Detections

SPLIT = "detected"


def write_voc(folder: Path, classes: Sequence[str]) -> Generator[None, Seen | None]:
    """A root in VOC layout, with one split, `detected`; scores are not in it.

    Images are linked, or copied where that fails; frames become images. Boxes thinner than a pixel are left out: in
    VOC's integer coordinates, which count the last pixel in, they would have no area.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = _Names()
    with (
        atomic_path(folder / "ImageSets" / "Main" / f"{SPLIT}.txt") as listing,
        open(listing, "w", encoding="utf-8") as file,
    ):
        while (seen := (yield)) is not None:
            name = names.new(seen)
            item = _item(seen, name, folder / "JPEGImages", min_side=1.0)
            write_atomic(folder / "Annotations" / f"{name}.xml", voc_xml(item.file, item.size, item.objects(classes)))
            file.write(f"{name}\n")


def write_yolo(folder: Path, classes: Sequence[str]) -> Generator[None, Seen | None]:
    """A root in YOLO layout, with one split, `detected`, a list of images; as `write_voc`, but for thin boxes."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    names = _Names()
    with atomic_path(folder / f"{SPLIT}.txt") as listing, open(listing, "w", encoding="utf-8") as file:
        while (seen := (yield)) is not None:
            name = names.new(seen)
            item = _item(seen, name, folder / "images", min_side=0.001)
            write_atomic(folder / "labels" / f"{name}.txt", yolo_rows(item))
            file.write(f"./images/{item.file}\n")
    content = {SPLIT: f"{SPLIT}.txt", "names": dict(enumerate(classes))}
    write_atomic(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


class _Names:
    """A name for each image, all different also without their suffixes and where case doesn't count."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def new(self, seen: Seen) -> str:
        plain = Path(seen.drawn).stem + ("" if seen.frame is None else f"-{seen.frame:06d}")
        # VOC's and YOLO's lists are UTF-8 text of one name a line
        plain = "_".join(plain.encode(errors="replace").decode().split("\n"))
        name, number = plain, 2
        while name.lower() in self._taken:
            name = f"{plain}-{number}"
            number += 1
        self._taken.add(name.lower())
        return name


def _item(seen: Seen, name: str, folder: Path, min_side: float) -> Item:
    """Bring an image to `folder` and return it with the detections whose sides are `min_side` pixels or more."""
    image = _place(seen, name, folder)
    boxes, labels = _arrays(seen.detections)
    keep = (boxes[:, 2:] - boxes[:, :2] >= min_side).all(1)
    boxes, labels = boxes[keep], labels[keep]
    record = Record(name, image, Annotations.of(boxes, labels), *seen.size)
    return Item(name, record)


def _place(seen: Seen, name: str, folder: Path) -> Path:
    import cv2

    # the data readers know fewer formats; and frames have no file
    if seen.path is None or seen.path.suffix.lower() not in IMAGE_SUFFIXES:
        target = folder / f"{name}{'.jpg' if seen.path is None else '.png'}"
        _, content = cv2.imencode(target.suffix, cv2.cvtColor(seen.image, cv2.COLOR_RGB2BGR))
        write_atomic(target, content.tobytes())
        return target
    target = folder / (name + seen.path.suffix)
    if not (target.exists() and target.samefile(seen.path)):
        target.unlink(missing_ok=True)  # of an earlier command: a copy into it would reach what it is linked to
        place_image(seen.path, target, "link")
    return target


def _arrays(detections: "Detections") -> tuple[np.ndarray, np.ndarray]:
    boxes, _, labels = detections.image(0)
    return np.round(boxes.double().numpy(), 3).astype(np.float32), labels.numpy()
