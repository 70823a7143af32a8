"""Tiny data sets in VOC layout."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

Box = tuple[object, object, object, object]


def xml(
    objects: Sequence[tuple[str, Box] | tuple[str, Box, int, int]],
    size: tuple[int, int] | None = (60, 40),
    filename: str = "",
) -> str:
    """An annotation; objects are (class, corners) or (class, corners, difficult, truncated)."""
    lines = ["<annotation>", f"<filename>{filename}</filename>"]
    if size is not None:
        lines.append(f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>")
    for name, corners, *flags in objects:
        tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("difficult", "truncated"), flags))
        edges = "".join(f"<{e}>{v}</{e}>" for e, v in zip(("xmin", "ymin", "xmax", "ymax"), corners))
        lines.append(f"<object><name>{name}</name>{tags}<bndbox>{edges}</bndbox></object>")
    return "\n".join([*lines, "</annotation>"])


def random_image(path: Path, size: tuple[int, int] = (60, 40), seed: int = 0) -> None:
    """A smooth image of (width, height)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), cv2.resize(small, size))


def make_root(root: Path, annotations: dict[str, str], splits: dict[str, list[str]], image_files: bool = True) -> Path:
    """Lay out a data set: id -> XML, split -> ids."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number, (name, content) in enumerate(annotations.items()):
        (root / "Annotations" / f"{name}.xml").write_text(content)
        if image_files:
            random_image(root / "JPEGImages" / f"{name}.jpg", seed=number)
    for split, ids in splits.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return root
