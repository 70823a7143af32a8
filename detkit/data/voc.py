"""Reader of PASCAL VOC data sets: any folder that holds JPEGImages, Annotations and ImageSets/Main.

VOC's boxes are 1-based inclusive pixels; they become [xmin - 1, ymin - 1, xmax, ymax], continuous edges, where they are
read (voc_index.py) and turn back where they are written (voc_writer.py).

EXIF: annotations are in the coordinates of the upright image (orientation applied), as labelling tools show it; only
where the XML's size fits the stored pixels and not the upright image is the orientation left unapplied.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from detkit.data.dataset import DetectionDataset, Problem, Source
from detkit.data.index import Index
from detkit.data.voc_index import read_index
from detkit.errors import UserError, did_you_mean

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


def check_layout(root: Path) -> None:
    """Raise UserError, saying how to get or lay out the data set, unless `root` is in VOC layout."""
    if not root.is_dir():
        raise UserError(f"no data set at {root}; {how_to_get(root)}")
    for part in ("Annotations", "ImageSets/Main"):
        if not (root / part).is_dir():
            inner = sorted(p.parent.name for p in root.glob("*/Annotations"))
            hint = f"it holds {', '.join(inner)}: name splits as {inner[0]}/SPLIT" if inner else how_to_get(root)
            if part != "Annotations":
                hint = f"make it with: python tools/dataset.py split {root}"
            raise UserError(f"{root} has no folder {part}, so it is not in VOC layout; {hint}")


def how_to_get(root: Path) -> str:
    """Return what to do about a data set that is not there."""
    year = re.search(r"(?:VOC|voc)(?:20)?(07|12)", str(root))
    if year:
        return f"fetch it with: python tools/dataset.py fetch voc{year[1]}"
    return "lay it out as ROOT/JPEGImages/*.jpg, ROOT/Annotations/*.xml, ROOT/ImageSets/Main/SPLIT.txt"


def read_split(root: Path, split: str, known: dict[str, int] | None = None) -> list[str]:
    """Return the ids of one split in file order.

    A line is an id; in VOC's files for one class a number follows, which is left out. `known` are the ids that have
    annotations: they settle whether a blank belongs to an id. Raises UserError for a missing or an empty split.
    """
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        existing = sorted(p.stem for p in path.parent.glob("*.txt"))
        plain = [name for name in existing if not name.endswith(("_train", "_val", "_trainval", "_test"))]
        raise UserError(f"no split {split!r} in {path.parent}{did_you_mean(split, plain or existing)}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file of image names") from None
    ids = [line if known is not None and line in known else line.split()[0] for line in lines if line]
    if not ids:
        raise UserError(f"{path}: the split is empty; it should hold one image name a line")
    return ids


class VOCSource(Source):
    """One split of a root in VOC layout."""

    origin = 1

    def __init__(self, root: Path, split: str, index: Index) -> None:
        known = index.rows_by_id()
        ids = read_split(root, split, known)
        problems = []
        for name, count in Counter(ids).items():
            if count > 1:
                text = f"image {name} is listed {'twice' if count == 2 else f'{count} times'}"
                problems.append(Problem(f"ImageSets/Main/{split}.txt", 0, "duplicate image", text))
            if name not in known:
                text = f"no annotation, which split {split!r} lists"
                problems.append(Problem(f"Annotations/{name}.xml", 0, "missing file", text))
        rows = np.array([known[name] for name in ids if name in known], dtype=np.int64)
        super().__init__(root, split, index, rows, problems)

    def file(self, row: int) -> str:
        return f"Annotations/{self.index.ids[row]}.xml"

    @cached_property
    def _images(self) -> frozenset[str]:
        """Names of the files in JPEGImages, none where the folder is missing."""
        folder = self.root / "JPEGImages"
        return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()

    def image_path(self, row: int) -> Path:
        """By the annotation's name, else by its <filename>; where neither exists, name.jpg."""
        name, stated = str(self.index.ids[row]), Path(str(self.index.files[row])).name
        names = (*(name + suffix for suffix in IMAGE_SUFFIXES), stated)
        return self.root / "JPEGImages" / next((file for file in names if file in self._images), name + ".jpg")


class VOCDataset(DetectionDataset):
    """Splits of roots in VOC layout; see DetectionDataset.

    Classes are by default those of all annotations of the roots, sorted (which for VOC is its official order).
    """

    split_file = "ImageSets/Main/{}.txt"

    @classmethod
    def open_sources(cls, sources: Sequence[tuple[Path, str]]) -> list[Source]:
        indices = {}
        for root in dict.fromkeys(root for root, _ in sources):
            check_layout(root)
            indices[root] = read_index(root)
        return [VOCSource(root, split, indices[root]) for root, split in sources]

    @classmethod
    def own_classes(cls, indices: Sequence[Index]) -> list[str]:
        return sorted(super().own_classes(indices))

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """Return the names of the splits of a root without VOC's files for one class, such as cat_train."""
        names = sorted(path.stem for path in (root / "ImageSets" / "Main").glob("*.txt"))
        if not any("_" in name for name in names):
            return names
        classes = set(read_index(root).classes.tolist())
        return [name for name in names if name.rpartition("_")[0] not in classes]
