"""Reader of YOLO data sets, as Ultralytics' tools lay them out: images, and a text file of rows for each.

data.yaml names classes and, for each split, a folder of images or a list of them (.txt). Without it a split `train` is
images/train, train/images or train.txt, and classes are those of classes.txt, else the numbers. The label file of
images/train/a.jpg is labels/train/a.txt; an image without one has no objects.

Rows are `class cx cy w h` in parts of the upright image. What they cannot hold (difficult, crowd, truncated, an area
that is not the box's) is in flags.json, see yolo_index.py; other tools pass that file by.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from detkit.data.dataset import DetectionDataset, Problem, Source
from detkit.data.image_file import IMAGE_SUFFIXES
from detkit.data.values import as_name, as_path, path_below
from detkit.data.yolo_index import label_name, read_yolo_index
from detkit.errors import UserError, did_you_mean
from detkit.files import read_text

# keys of a data.yaml that are no splits
OTHER_KEYS = frozenset(("path", "names", "nc", "download", "kpt_shape", "flip_idx", "channels", "roboflow"))


@dataclass(frozen=True)
class Layout:
    """A root's data.yaml, or what stands in for it.

    config: its path, None without one. names: class numbers and names, None where nothing says them. splits: name ->
    folders and lists, relative to `bases`, which are tried in order.
    """

    root: Path
    config: Path | None
    names: dict[int, str] | None
    splits: dict[str, list[str]]
    bases: tuple[Path, ...]

    def find(self, entry: str) -> Path | None:
        """Path of a folder or list that the config or a user names."""
        entries = [entry]
        if entry.startswith("../"):  # Roboflow writes ../train/images, and means train/images
            entries.append(entry.removeprefix("../"))
        paths = (base / name for name in entries for base in self.bases)
        return next((path for path in paths if path.is_dir() or path.is_file()), None)


def find_config(root: Path) -> Path | None:
    """Path of a root's data.yaml, under whatever name."""
    for name in ("data.yaml", "data.yml", "dataset.yaml"):
        if (root / name).is_file():
            return root / name
    others = [path for path in sorted(root.glob("*.y*ml")) if "names:" in path.read_text(errors="replace")]
    return others[0] if len(others) == 1 else None


def read_layout(root: Path) -> Layout:
    """Read how a root is laid out. UserError, in one line, where data.yaml is broken."""
    path = find_config(root)
    content: dict[str, Any] = {} if path is None else _read_yaml(path)
    bases = [root]
    if content.get("path"):
        bases.insert(0, root / str(content["path"]))  # often a folder on the author's machine: then it is not there
    splits = {}
    for key, value in content.items():
        entries = [value] if isinstance(value, str) else value
        is_list = isinstance(entries, list) and entries and all(isinstance(entry, str) for entry in entries)
        if is_list and key not in OTHER_KEYS:
            splits[str(key)] = entries
    names = _names(content["names"], path) if path is not None and content.get("names") else _names_of_text(root)
    return Layout(root, path, names, splits, tuple(bases))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a mapping with keys such as names, train and val")
    return content


def _names(names: Any, path: Path) -> dict[int, str]:
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names or not all(type(key) is int and key >= 0 for key in names):
        raise UserError(f"{path}: names is neither a list nor a mapping of class numbers to names")
    return {key: as_name(names[key]) for key in sorted(names)}


def _names_of_text(root: Path) -> dict[int, str] | None:
    for path in (root / "classes.txt", root / "labels" / "classes.txt"):
        if path.is_file():
            lines = [line.strip() for line in read_text(path).splitlines()]
            return dict(enumerate(line for line in lines if line)) or None
    return None


def yolo_splits(root: Path) -> list[str]:
    """Names of the splits below a root: those of data.yaml that are there, else folders of images and lists."""
    layout = read_layout(root)
    named = [name for name, entries in layout.splits.items() if any(layout.find(entry) for entry in entries)]
    if named:
        return named
    folders = {path.name for path in root.glob("images/*") if path.is_dir()}
    folders |= {path.parent.name for path in root.glob("*/images") if path.is_dir()}
    lists = {path.stem for path in root.glob("*.txt") if path.name != "classes.txt" and _is_list(path)}
    return sorted(folders | lists)


def _is_list(path: Path) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        return Path(file.readline().strip()).suffix.lower() in IMAGE_SUFFIXES


def split_images(root: Path, split: str) -> list[str]:
    """Images of a split, relative to the root: of a folder all below it, by name; of a list in its order.

    Raises UserError where there is no such split, or no image in it.
    """
    layout = read_layout(root)
    entries = layout.splits.get(split)
    if entries is None:
        usual = (f"images/{split}", f"{split}/images", f"{split}.txt", split)
        entries = [entry for entry in usual if layout.find(entry)][:1]
        if not entries:
            raise UserError(f"no split {split!r} in {root}{did_you_mean(split, yolo_splits(root))}")
    images: list[str] = []
    for entry in entries:
        path = layout.find(entry)
        if path is None:
            raise UserError(f"{layout.config}: {split}: there is no {entry} below {layout.bases[-1]}")
        images += _listed(path, layout) if path.is_file() else images_below(root, path)
    if not images:
        raise UserError(f"{root}: the split {split} is empty; {entries[0]} holds no image")
    return images


def images_below(root: Path, folder: Path) -> list[str]:
    """Names of all images below a folder, relative to the root, sorted."""
    found = [
        os.path.join(where, name)
        for where, _, names in os.walk(folder, followlinks=True)
        for name in names
        if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".")
    ]
    return sorted(path_below(Path(path), root) for path in found)


def _listed(path: Path, layout: Layout) -> list[str]:
    images = []
    for line in read_text(path).splitlines():
        if name := as_path(as_name(line)):
            # as Ultralytics has it: ./ is the list's folder, anything else the data set's
            bases = (path.parent, *layout.bases) if name.startswith("./") else (*layout.bases, path.parent)
            choices = [base / name for base in bases]
            images.append(path_below(next((choice for choice in choices if choice.is_file()), choices[0]), layout.root))
    return images


class YOLOSource(Source):
    """One split: its images and their label files."""

    unit = "line"
    slack = 0.5  # of six decimals

    def __init__(self, root: Path, split: str, images: Sequence[str] | None = None) -> None:
        layout = read_layout(root)
        listed = split_images(root, split) if images is None else images
        unique = list(dict.fromkeys(listed))
        index = read_yolo_index(root, split, unique, layout.names)
        problems = [
            Problem(image, 0, "duplicate image", f"image {image} is listed twice in {split}")
            for image, count in Counter(listed).items()
            if count > 1
        ]
        if not len(index.objects) and not any((root / label_name(image)).is_file() for image in unique):
            text = f"no image of {split} has a label file; an empty one says that an image has no objects"
            problems.append(Problem(label_name(unique[0]), 0, "missing file", text))
        if layout.names is None:  # the numbers that any split has
            others = [name for name in yolo_splits(root) if name != split] if images is None else []
            lists = {name: list(dict.fromkeys(split_images(root, name))) for name in others}
            indices = [index, *(read_yolo_index(root, name, files, None) for name, files in lists.items())]
            highest = max(int(one.objects.labels.max(initial=-1)) for one in indices)
            index = replace(index, classes=np.array([str(number) for number in range(highest + 1)], dtype=np.str_))
        super().__init__(root, split, index, np.arange(len(unique)), problems)

    def file(self, row: int) -> str:
        return label_name(str(self.index.files[row]))

    def image_path(self, row: int) -> Path:
        return self.root / str(self.index.files[row])

    def strays(self) -> list[Problem]:
        folders = {str(PurePosixPath(image).parent): label_name(image) for image in self.index.files.tolist()}
        found = []
        for folder, label in folders.items():
            images = {path.stem for path in (self.root / folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES}
            for path in (self.root / label).parent.glob("*.txt"):
                if path.stem not in images and path.name != "classes.txt" and path.parent != self.root:
                    file = path_below(path, self.root)
                    found.append(Problem(file, 0, "missing file", f"there is no image {path.stem} in {folder}"))
        return found


class YOLODataset(DetectionDataset):
    """Splits of roots in YOLO layout; see DetectionDataset. Classes are by default those of data.yaml, by number."""

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        return yolo_splits(root)

    @classmethod
    def open_sources(cls, sources: Sequence[tuple[Path, str]]) -> list[Source]:
        return [YOLOSource(root, split) for root, split in sources]
