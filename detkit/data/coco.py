"""Reader of COCO data sets: a JSON file of annotations for each split, and folders of images.

A split `train` is annotations/instances_train.json, annotations/train.json or train/_annotations.coco.json, or a path
to any .json below the root. Images are looked for in the folder that is called as the split, beside the annotations,
below `images` or not, in `images`, and in the root.

Crowds are ignored, by training and evaluation. COCO knows no difficult and no truncated objects: annotations may have
these keys beside `iscrowd`, and detkit's converter writes them. Masks and keypoints are not read.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from detkit.data.coco_index import COCOIndex, read_coco_index
from detkit.data.dataset import DetectionDataset, Problem, Source
from detkit.data.values import path_below
from detkit.errors import UserError, did_you_mean

PREFIX = "instances_"
BESIDE = "_annotations.coco.json"  # as Roboflow calls the file beside the images


def coco_splits(root: Path) -> list[str]:
    """Names of the splits below a root."""
    names = {path.parent.name for path in root.glob(f"*/{BESIDE}")}
    files = [path.stem for path in (root / "annotations").glob("*.json") if not path.name.startswith(".")]
    # beside instances_train2017.json lie captions, keypoints and lists of test images, which are no splits
    official = [name for name in files if name.startswith(PREFIX)]
    return sorted(names | {name.removeprefix(PREFIX) for name in official or files})


def find_annotations(root: Path, split: str) -> Path:
    """Path of the JSON file of a split; UserError says what there is instead."""
    if split.endswith(".json"):
        candidates = [root / split]
    else:
        folder = root / "annotations"
        candidates = [folder / f"{PREFIX}{split}.json", folder / f"{split}.json", root / split / BESIDE]
    for path in candidates:
        if path.is_file():
            return path
    if split.endswith(".json") or not (known := coco_splits(root)):
        raise UserError(f"no file {candidates[0]}")
    raise UserError(f"no split {split!r} in {root}{did_you_mean(split, known)}")


class COCOSource(Source):
    """One JSON file and the folder of its images."""

    unit = "annotation"
    slack = 0.5  # the official boxes have two decimals, rounded

    index: COCOIndex

    def __init__(self, root: Path, split: str) -> None:
        self.path = find_annotations(root, split)
        index = read_coco_index(root, self.path)
        problems = [Problem(path_below(self.path, root), 0, "broken file", line) for line in index.general.tolist()]
        super().__init__(root, split, index, np.arange(len(index.ids)), problems)

    def file(self, row: int) -> str:
        return f"{path_below(self.path, self.root)}: image {self.index.files[row]}"

    def image_path(self, row: int) -> Path:
        folder, bare = self._folder
        name = str(self.index.files[row])
        return folder / (Path(name).name if bare else name)

    @cached_property
    def _folder(self) -> tuple[Path, bool]:
        """The folder of the images, and whether only the last part of each file_name counts."""
        root = self.root
        stem = self.path.stem.removeprefix(PREFIX)
        folders = [root / stem, root / "images" / stem, root / "images", root, self.path.parent]
        if self.path.name == BESIDE:
            folders.insert(0, self.path.parent)
        # a file that `split` made goes with the images of the file it was made from
        folders += sorted(path for path in [*root.glob("*"), *root.glob("images/*")] if path.is_dir())
        for name in self.index.files[:10].tolist():  # more than one, since a single image may be missing
            for bare in (False, True):
                for folder in folders:
                    if name and (folder / (Path(name).name if bare else name)).is_file():
                        return folder, bare
        return next((folder for folder in folders if folder.is_dir()), root), False


class COCODataset(DetectionDataset):
    """Splits of roots in COCO layout; see DetectionDataset. Classes are by default those of the categories, by id.

    The files' own ids stay known, for results in COCO's format: `image_ids`, one for each image, and `category_ids`,
    one for each class, None for a class that no file has.
    """

    _opened: "list[COCOSource]"

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        return coco_splits(root)

    @classmethod
    def open_sources(cls, sources: Sequence[tuple[Path, str]]) -> list[Source]:
        return [COCOSource(root, split) for root, split in sources]

    @property
    def image_ids(self) -> tuple[int | str, ...]:
        """The id that an image has in its file."""
        return tuple(key for source in self._opened for key in source.index.image_ids[source.rows].tolist())

    @property
    def category_ids(self) -> tuple[int | str | None, ...]:
        """The id that a class has in the first file that has it."""
        known: dict[str, int | str] = {}
        for source in self._opened:
            for name, key in zip(source.index.classes.tolist(), source.index.category_ids.tolist()):
                known.setdefault(name, key)
        return tuple(known.get(name) for name in self.classes)
