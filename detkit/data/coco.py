"""Reader of COCO data sets: a JSON file of annotations for each split, and folders of images.

A split `train` is annotations/instances_train.json, annotations/train.json or train/_annotations.coco.json, or a path
to any .json below the root. Images are looked for in the folder that is called as the split, beside the annotations,
below `images` or not, in `images`, and in the root.

Crowds are ignored, by training and evaluation. COCO knows no difficult and no truncated objects: annotations may have
these keys beside `iscrowd`, and detkit's converter writes them. Masks are read where they are asked for, polygons and
run lengths alike, see masks.py; keypoints are not.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from detkit.data.coco_index import COCOIndex, from_json, read_coco_index
from detkit.data.dataset import DetectionDataset
from detkit.data.finding import Finder, is_image, spellings
from detkit.data.image_sizes import image_sizes
from detkit.data.masks import COCOMasks, MaskCheck
from detkit.data.source import Problem, Source
from detkit.data.values import as_path, path_below
from detkit.errors import UserError, did_you_mean
from detkit.structures import TruthSet

PREFIX = "instances_"
BESIDE = "_annotations.coco.json"  # as Roboflow calls the file beside the images


def coco_splits(root: Path) -> list[str]:
    """Names of the splits below a root."""
    return list(_files(Finder(root)))


def _files(finder: Finder) -> dict[str, str]:
    """The JSON file of each split."""
    folder = finder.folder("annotations")
    names = [name for name in finder.files(folder) if name[-5:].lower() == ".json" and name[0] != "."] if folder else []
    # beside instances_train2017.json lie captions, keypoints and lists of test images, which are no splits
    official = [name for name in names if name.startswith(PREFIX)]
    files = {name[:-5].removeprefix(PREFIX): f"{folder}/{name}" for name in official or names}
    for folder in finder.folders(finder.root):
        if os.path.isfile(f"{folder}/{BESIDE}"):
            files.setdefault(os.path.basename(folder), f"{folder}/{BESIDE}")
    return dict(sorted(files.items()))


def find_annotations(root: Path, split: str, finder: Finder | None = None) -> Path:
    """Path of the JSON file of a split; UserError says what there is instead."""
    finder = finder or Finder(root)
    if split.lower().endswith(".json"):
        path = finder.find_entry(split, [finder.root])
        if path is None:
            raise UserError(f"no file {root / split}")
        return Path(path)
    known = _files(finder)
    folder = finder.folder("annotations") or finder.below("annotations")
    for name in (f"{PREFIX}{split}.json", f"{split}.json"):  # captions_train, too, if it is asked for
        if name in finder.files(folder):
            known[split] = f"{folder}/{name}"
            break
    if split in known:
        return Path(known[split])
    if not known:
        raise UserError(f"no file {folder}/{PREFIX}{split}.json")
    raise UserError(f"no split {split!r} in {root}{did_you_mean(split, known)}")


class COCOSource(Source):
    """One JSON file and the folder of its images."""

    unit = "annotation"
    slack = 0.5  # the official boxes have two decimals, rounded

    index: COCOIndex

    def __init__(self, root: Path, split: str) -> None:
        finder = Finder(root)
        self.path = find_annotations(root, split, finder)
        index = read_coco_index(root, self.path)
        listed = path_below(self.path, root)
        problems = [Problem(listed, 0, "broken file", line) for line in index.general.tolist()]
        paths = self._find(finder, index.files.tolist())
        sizes = image_sizes(finder, listed, paths)
        notes = [f"{listed}: {note}" for note in index.notes.tolist()]
        super().__init__(root, split, index, np.arange(len(paths)), paths, sizes, listed, problems, notes=notes)

    def file(self, row: int) -> str:
        return f"{path_below(self.path, self.root)}: image {as_path(self.index.files[row])}"

    def find_masks(self) -> COCOMasks:
        return COCOMasks(self.root, self.path, self.sizes)

    def mask_check(self) -> MaskCheck | None:
        if not self.index.masked:
            return None
        masks = self.find_masks()
        return lambda row: masks.check(*self.annotated(row), self.slack)

    def _find(self, finder: Finder, names: list[str]) -> list[str]:
        """The paths of images."""
        stem, beside = self.path.stem.removeprefix(PREFIX), str(self.path.parent)
        folders = [finder.below(*parts) for parts in ((stem,), ("images", stem), ("images",), (".",))] + [beside]
        if self.path.name == BESIDE:
            folders.insert(0, beside)
        # a file that `split` made goes with the images of the file it was made from
        others = finder.folders(finder.root) + finder.folders(finder.below("images"))
        folders = list(dict.fromkeys((*folders, *others)))
        here = [folder for folder in folders if os.path.isdir(folder)]
        few = [name for name in names if name.strip()][:10]  # more than one, since a single image may be missing
        choices = (
            (f, bare) for name in few for bare in (False, True) for f in folders if _find(finder, name, [f], bare)
        )
        # where there are only annotations, not each name is looked for everywhere
        are_there = any(is_image(name) for folder in here for name in finder.files(folder))
        folder, bare = next(choices, (here[0] if here else finder.root, False))
        bases = list(dict.fromkeys((finder.root, *folders[:5]))) if are_there else []
        return [
            _find(finder, name, [folder], bare) or _find(finder, name, bases, bare) or _missing(folder, name)
            for name in names
        ]


def _missing(folder: str, name: str) -> str:
    return os.path.normpath(os.path.join(folder, (spellings(name) or ["?"])[-1]))


def _find(finder: Finder, name: str, bases: Sequence[str], bare: bool) -> str | None:
    """The path of an image; bare: only the last part of its name counts."""
    return finder.find_image(as_path(name).strip().rpartition("/")[2] if bare else name, bases)


class COCODataset(DetectionDataset):
    """Splits of roots in COCO layout; see DetectionDataset. Classes are by default those of the categories, by id.

    The files' own ids stay known, for results in COCO's format: `image_ids`, one for each image, and `category_ids`,
    one for each class, None for a class that no file has.
    """

    opened: "list[COCOSource]"

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        return coco_splits(root)

    @classmethod
    def open_sources(cls, sources: Sequence[tuple[Path, str]]) -> list[Source]:
        return [COCOSource(root, split) for root, split in sources]

    @property
    def image_ids(self) -> tuple[int | str, ...]:
        """The id that an image has in its file."""
        return tuple(key for source in self.opened for key in from_json(source.index.image_ids[source.rows]))

    def ranked_truth(self, masks: bool = False) -> TruthSet:
        """Return `truth`, its images in the order of their ids, as pycocotools takes those of a file."""
        truth, ids = self.truth(masks=masks), self.image_ids
        order = sorted(range(len(ids)), key=lambda image: (self._source[image], ids[image]))
        place = torch.tensor(order).argsort()
        return replace(truth, ids=tuple(truth.ids[image] for image in order), image=place[truth.image])

    @property
    def category_ids(self) -> tuple[int | str | None, ...]:
        """The id that a class has in the first file that has it."""
        known: dict[str, int | str] = {}
        for source in self.opened:
            for name, key in zip(source.index.classes.tolist(), from_json(source.index.category_ids)):
                known.setdefault(name, key)
        return tuple(known.get(name) for name in self.classes)
