"""Reader of PASCAL VOC data sets: any folder that holds JPEGImages, Annotations and ImageSets/Main.

Only this module knows about VOC's 1-based inclusive pixels: a box leaves it as [xmin - 1, ymin - 1, xmax, ymax],
continuous edges in pixels. Photos are touched only by `image`, so annotations alone are enough for scoring.

EXIF: annotations are in the coordinates of the upright photo (orientation applied), as labelling tools show it; only
where the XML's size fits the stored pixels and not the upright photo is the orientation left unapplied.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from detkit.data.photo import decode_photo
from detkit.data.voc_index import Index, read_index
from detkit.errors import UserError, did_you_mean
from detkit.structures import TruthSet

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


@dataclass(frozen=True)
class Record:
    """One annotated photo.

    boxes: (N, 4) float32 continuous xyxy pixels, inside the photo. labels: (N,) int64. difficult, truncated: (N,)
    bool. width, height: as the XML says, 0 where it says nothing.
    """

    id: str
    path: Path
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    truncated: np.ndarray
    width: int
    height: int


def parse_splits(root: str | Path, splits: Sequence[str]) -> list[tuple[Path, str]]:
    """`SPLIT` or `SUBDIR/SPLIT` below `root` -> (folder of the data set, split)."""
    root = Path(root)
    sources = []
    for spec in splits:
        folder, _, split = spec.rpartition("/")
        sources.append((root / folder if folder else root, split))
    return sources


def check_layout(root: Path) -> None:
    """Raise UserError, saying how to get or lay out the data set, unless `root` is in VOC layout."""
    if not root.is_dir():
        raise UserError(f"no data set at {root}; {_how_to_get(root)}")
    for part in ("Annotations", "ImageSets/Main"):
        if not (root / part).is_dir():
            inner = sorted(p.parent.name for p in root.glob("*/Annotations"))
            hint = f"it holds {', '.join(inner)}: name splits as {inner[0]}/SPLIT" if inner else _how_to_get(root)
            raise UserError(f"{root} has no folder {part}, so it is not in VOC layout; {hint}")


def _how_to_get(root: Path) -> str:
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


def photo_names(root: Path) -> frozenset[str]:
    """Names of the files in JPEGImages, none where the folder is missing."""
    try:
        return frozenset(os.listdir(root / "JPEGImages"))
    except OSError:
        return frozenset()


def find_photo(root: Path, name: str, stated: str, existing: frozenset[str]) -> Path:
    """Path of the photo of an annotation: by its id, else by its <filename>; where neither exists, id.jpg."""
    folder = root / "JPEGImages"
    for suffix in PHOTO_SUFFIXES:
        if name + suffix in existing:
            return folder / (name + suffix)
    stated = Path(stated.replace("\\", "/")).name
    return folder / (stated if stated in existing else name + ".jpg")


class VOCDataset:
    """Photos and objects of one or several splits, each of a root in VOC layout.

    sources: (root, split) pairs, see `parse_splits`. classes: names in label order; None reads them from all
    annotations of the roots, sorted (which for VOC is its official order). Ids are unique: `VOC2007/000005` where
    there are several roots, else `000005`.

    Raises UserError: missing data set or split, empty split, image without annotation, broken annotation or box,
    class that is not in `classes`; each names file and object.
    """

    def __init__(
        self, sources: Sequence[tuple[Path, str]], classes: Sequence[str] | None = None, name: str | None = None
    ) -> None:
        if not sources:
            raise UserError("no split of the data set is given; an example: data.test=[test]")
        sources = [(Path(root), split) for root, split in sources]
        self.sources: tuple[tuple[Path, str], ...] = tuple(sources)
        roots = list(dict.fromkeys(root for root, _ in sources))
        indices = {}
        for root in roots:
            check_layout(root)
            indices[root] = read_index(root)
        if classes is None:
            classes = sorted({str(name) for index in indices.values() for name in index.classes})
        if len(set(classes)) != len(classes):
            raise UserError(f"data.classes: a class is named twice in {', '.join(classes)}")
        self.classes: tuple[str, ...] = tuple(classes)
        self.name = name or "+".join(f"{root.name}/{split}" for root, split in sources)

        ids: list[str] = []
        self._paths: list[tuple[Path, str, str]] = []  # root, id, <filename>: resolved when first needed
        self._photos: dict[Path, frozenset[str]] = {}
        parts = [_select(root, split, indices[root], self.classes) for root, split in sources]
        for (root, _), part in zip(sources, parts):
            prefix = f"{root.name}/" if len(roots) > 1 else ""
            ids += [prefix + name for name in part.ids]
            self._paths += [(root, name, photo) for name, photo in zip(part.ids, part.photos)]
        self.ids: tuple[str, ...] = tuple(ids)
        if len(set(ids)) != len(ids):
            seen: set[str] = set()
            twice = next(name for name in ids if name in seen or seen.add(name))
            raise UserError(f"{self.name}: image {twice} is listed twice")
        self._sizes = np.concatenate([part.sizes for part in parts])
        counts = np.concatenate([part.counts for part in parts])
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._boxes = np.concatenate([part.boxes for part in parts])
        self._labels = np.concatenate([part.labels for part in parts])
        self._difficult = np.concatenate([part.difficult for part in parts])
        self._truncated = np.concatenate([part.truncated for part in parts])

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sizes(self) -> np.ndarray:
        """(len, 2) int64 width and height of each photo as its XML says, 0 where it says nothing."""
        return self._sizes

    def record(self, i: int) -> Record:
        """Return what is known of image `i`; touches no photo."""
        own = slice(self._first[i], self._first[i + 1])
        return Record(
            id=self.ids[i],
            path=self._path(i),
            boxes=self._boxes[own],
            labels=self._labels[own],
            difficult=self._difficult[own],
            truncated=self._truncated[own],
            width=int(self._sizes[i, 0]),
            height=int(self._sizes[i, 1]),
        )

    def image(self, i: int) -> np.ndarray:
        """Return image `i` as (H, W, 3) RGB uint8, EXIF applied. UserError names the file where that fails."""
        width, height = self._sizes[i].tolist()
        return decode_photo(self._path(i), (width, height))

    def truth(self) -> TruthSet:
        """Return all objects, flat; `ignore` is the difficult flag."""
        counts = np.diff(self._first)
        return TruthSet(
            boxes=torch.from_numpy(self._boxes.copy()),
            labels=torch.from_numpy(self._labels.copy()),
            ignore=torch.from_numpy(self._difficult.copy()),
            image=torch.from_numpy(np.repeat(np.arange(len(self)), counts)),
            ids=self.ids,
            classes=self.classes,
        )

    def _path(self, i: int) -> Path:
        root, name, stated = self._paths[i]
        if root not in self._photos:
            self._photos[root] = photo_names(root)
        return find_photo(root, name, stated, self._photos[root])


@dataclass(frozen=True)
class _Part:
    """The objects of one split, ready for use; counts: (F,) objects of each image."""

    ids: list[str]
    photos: list[str]
    sizes: np.ndarray
    counts: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    truncated: np.ndarray


def _select(root: Path, split: str, index: Index, classes: tuple[str, ...]) -> _Part:
    """Take a split out of an index; UserError for what is broken in it."""
    known = index.rows()
    ids = read_split(root, split, known)
    folder = root / "Annotations"
    missing = [name for name in ids if name not in known]
    if missing:
        count = f" ({len(missing)} are missing)" if len(missing) > 1 else ""
        raise UserError(f"no annotation {folder / (missing[0] + '.xml')}, which split {split!r} lists{count}")
    files = np.array([known[name] for name in ids])
    for file in files[index.problems[files] != ""]:
        raise UserError(f"{folder / (str(index.ids[file]) + '.xml')}: {str(index.problems[file]).splitlines()[0]}")

    counts = np.diff(index.first)[files]
    ends = np.cumsum(counts)
    # objects of file f are first[f], first[f] + 1, ...: the same ranges, written without a loop
    objects = np.arange(counts.sum()) + np.repeat(index.first[files] - (ends - counts), counts)
    owner = np.repeat(files, counts)

    def refuse(bad: np.ndarray, reason: str) -> None:
        k = int(bad.argmax())
        item = objects[k]
        xml = folder / (str(index.ids[owner[k]]) + ".xml")
        name = str(index.classes[index.names[item]])
        raise UserError(f"{xml}: object {index.number[item]}: " + reason.format(name=name) + hint(name))

    def hint(name: str) -> str:
        return did_you_mean(name, classes) if name not in classes else ""

    place = {name: label for label, name in enumerate(classes)}
    labels = np.array([place.get(str(name), -1) for name in index.classes], dtype=np.int64)[index.names[objects]]
    if (labels < 0).any():
        refuse(labels < 0, "class {name!r} is not in data.classes")
    boxes, outside = clip_corners(index.corners[objects], index.sizes[owner])
    if outside.any():
        refuse(outside, "the box of this {name} lies outside the image")
    return _Part(
        ids=ids,
        photos=[str(name) for name in index.photos[files]],
        sizes=index.sizes[files],
        counts=counts,
        boxes=boxes,
        labels=labels,
        difficult=index.difficult[objects],
        truncated=index.truncated[objects],
    )


def clip_corners(corners: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1-based inclusive corners (N, 4) -> continuous float32 boxes inside images of `sizes` (N, 2) width, height.

    Also returns (N,) bool, True where nothing of a box is inside. A size of 0 is unknown and does not bound.
    """
    low = np.maximum(corners[:, :2] - 1, 0)
    high = np.minimum(corners[:, 2:], np.where(sizes > 0, sizes, np.inf))
    return np.concatenate([low, high], 1).astype(np.float32), np.logical_or(*(high <= low).T)
