"""Reader of YOLO data sets, as Ultralytics' tools lay them out: images, and a text file of rows for each.

data.yaml names classes and, for each split, a folder of images or a list of them (.txt). Without it a split `train` is
images/train, train/images or train.txt, and classes are those of classes.txt, in the root or beside labels or images,
else the numbers. The label file of images/train/a.jpg is labels/train/a.txt; an image without one has no objects.

Rows are `class cx cy w h` in parts of the upright image, and key points as data.yaml declares them (kpt_shape). What
rows cannot hold (difficult, crowd, truncated, an area that is not the box's) is in flags.json, see yolo_index.py; other
tools pass that file by.
"""

import os
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detkit.data.annotations import Fault
from detkit.data.dataset import EVERYTHING, DetectionDataset
from detkit.data.finding import Finder, is_image, spellings
from detkit.data.image_sizes import image_sizes
from detkit.data.index import Index, texts
from detkit.data.source import Problem, Source
from detkit.data.values import as_name, as_whole, lines_of, path_below
from detkit.data.yolo_index import MAX_CLASSES, label_name, read_yolo_index, to_pixels
from detkit.errors import UserError, did_you_mean
from detkit.files import read_text

# keys of a data.yaml that are no splits
OTHER_KEYS = frozenset(("path", "names", "nc", "download", "kpt_shape", "flip_idx", "channels", "roboflow"))
CONFIGS = ("data.yaml", "data.yml", "dataset.yaml")  # in upper or lower case
CLASSES = "classes.txt"


@dataclass(frozen=True)
class Layout:
    """A root's data.yaml, or what stands in for it.

    config: its path, None without one. names: class numbers and names, None where nothing says them. splits: name ->
    folders and lists, relative to `bases`, which are tried in order. point_numbers: how many numbers of key points a
    row has.
    """

    finder: Finder
    config: Path | None
    names: dict[int, str] | None
    splits: dict[str, list[str]]
    bases: tuple[str, ...]
    point_numbers: int = 0

    @property
    def root(self) -> Path:
        """The folder of the data set."""
        return Path(self.finder.root)

    def find(self, entry: str) -> str | None:
        """Path of a folder or list that the config or a user names."""
        path = self.finder.find_entry(entry, self.bases)
        stem, suffix = os.path.splitext(entry)
        return path or (self.finder.find_entry(stem + suffix.upper(), self.bases) if suffix == ".txt" else None)


def find_config(root: Path) -> Path | None:
    """Path of a root's data.yaml, under whatever name."""
    files = sorted(os.listdir(root)) if root.is_dir() else []
    for name in CONFIGS:
        for file in files:
            if file.lower() == name and (root / file).is_file():
                return root / file
    others = [root / file for file in files if file.lower().endswith((".yaml", ".yml")) and (root / file).is_file()]
    others = [path for path in others if "names:" in path.read_text(errors="replace")]
    return others[0] if len(others) == 1 else None


def read_layout(root: Path) -> Layout:
    """Read how a root is laid out. UserError, in one line, where data.yaml is broken."""
    finder, path = Finder(root), find_config(root)
    if path is None:
        return Layout(finder, None, _names_of_text(root), {}, (finder.root,))
    content = _read_yaml(path)
    bases = [finder.root]
    base = content.get("path")
    if isinstance(base, str) and base.strip():
        # often a folder on the author's machine: then it is not there
        bases = [folder for text in spellings(base) if os.path.isdir(folder := finder.below(text))][:1] + bases
    splits = {}
    for key, value in content.items():
        entries = [value] if isinstance(value, str) else value
        if isinstance(entries, list) and all(isinstance(entry, str) for entry in entries) and key not in OTHER_KEYS:
            splits[key] = [entry for entry in entries if entry.strip()]
    names = _names(content["names"], path) if "names" in content else _names_of_text(root)
    return Layout(finder, path, names, splits, tuple(dict.fromkeys(bases)), _point_numbers(content, path))


class _Texts(yaml.BaseLoader):
    """Reads all values as the texts that they are written as; a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping, see yaml.constructor."""
        keys = Counter(str(self.construct_object(key, deep=True)) for key, _ in node.value)
        for key, count in keys.items():
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(read_text(path), _Texts)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a mapping with keys such as names, train and val")
    return content


def _names(names: Any, path: Path) -> dict[int, str]:
    pairs = (
        list(enumerate(names)) if isinstance(names, list) else list(names.items() if isinstance(names, dict) else ())
    )
    numbers = [as_whole(key) for key, _ in pairs]
    if not pairs or None in numbers:
        raise UserError(f"{path}: names is neither a list nor a mapping of class numbers to names")
    found: dict[int, str] = {}
    for number, (_, name) in sorted(zip(numbers, pairs), key=lambda pair: pair[0] or 0):
        if number is None or not 0 <= number < MAX_CLASSES or number in found:
            text = str(number)[:60]
            raise UserError(f"{path}: names: class {text} is there twice, or is none from 0 to {MAX_CLASSES - 1:,}")
        if not as_name(name):
            raise UserError(f"{path}: names: class {number} has no name, which is a text")
        if as_name(name) in found.values():
            raise UserError(f"{path}: names: two classes are called {as_name(name)!r}")
        found[number] = as_name(name)
    return found


def _point_numbers(content: dict[str, Any], path: Path) -> int:
    """How many numbers of key points a row has, as data.yaml declares: points, and 2 or 3 of each."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    points, each = (map(as_whole, shape)) if isinstance(shape, list) and len(shape) == 2 else (None, None)
    if points is None or each not in (2, 3) or not 0 < points < MAX_CLASSES:
        raise UserError(f"{path}: kpt_shape is {shape}, not [number of points, 2 or 3]")
    return points * each


def _names_of_text(root: Path) -> dict[int, str] | None:
    """Names of classes.txt, in the root or in folders below it, a line each."""
    found: dict[str, list[str]] = {}
    for pattern in (CLASSES, f"*/{CLASSES}", f"*/*/{CLASSES}"):
        for path in sorted(root.glob(pattern)):
            found[path_below(path, root)] = [line.strip() for line in read_text(path).rstrip().splitlines()]
    for file, names in found.items():
        first = next(iter(found))
        if names != found[first]:
            raise UserError(f"{root}: {first} and {file} name different classes")
        if "" in names or len(set(names)) < len(names):
            raise UserError(f"{root / file}: a line is empty, or there twice; it should hold one class a line")
    names = next(iter(found.values()), [])
    return dict(enumerate(names)) or None


def yolo_splits(root: Path) -> list[str]:
    """Names of the splits below a root: those of data.yaml that are there, else folders of images and lists."""
    layout = read_layout(root)
    named = [name for name, entries in layout.splits.items() if any(layout.find(entry) for entry in entries)]
    if named:
        return named
    folders = {path.name for path in root.glob("images/*") if path.is_dir()}
    folders |= {path.parent.name for path in root.glob("*/images") if path.is_dir()}
    lists = {path.stem for path in root.glob("*.[tT][xX][tT]") if path.name != CLASSES and _is_list(path)}
    return sorted(folders | lists)


def _is_list(path: Path) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        return is_image(file.readline().strip())


def _split_images(layout: Layout, split: str) -> list[str]:
    """Paths of the images of a split: of a folder all below it, by name; of a list in its order.

    Raises UserError where there is no such split, or no image in it.
    """
    root, entries = layout.root, layout.splits.get(split)
    if split == EVERYTHING:
        if not (images := layout.finder.images(layout.finder.root)):
            raise UserError(f"{root} holds no image")
        return images
    if entries == []:
        raise UserError(f"{layout.config}: {split}: it names no folder of images, nor a list of them")
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
        images += _listed(path, layout) if os.path.isfile(path) else layout.finder.images(path)
    if not images:
        raise UserError(f"{root}: the split {split} is empty; {entries[0]} holds no image")
    return images


def _listed(path: str, layout: Layout) -> list[str]:
    images, folder = [], os.path.dirname(path)
    for line in lines_of(read_text(path)):
        # as Ultralytics has it: ./ is the list's folder, anything else the data set's
        is_beside = line.strip().replace("\\", "/").startswith("./")
        bases = (folder, *layout.bases) if is_beside else (*layout.bases, folder)
        missing = os.path.normpath(os.path.join(bases[0], spellings(line)[-1]))
        images.append(layout.finder.find_image(line, bases) or missing)
    return images


class YOLOSource(Source):
    """One split: its images and their label files. images: their paths, where no split lists them."""

    unit = "line"
    slack = 0.5  # of six decimals
    states_size = False

    def __init__(self, root: Path, split: str, images: Sequence[str] | None = None) -> None:
        layout = read_layout(root)
        finder = layout.finder
        listed = _split_images(layout, split) if images is None else images
        paths = list(dict.fromkeys(listed))
        self._labels = [_label_path(finder, path) for path in paths]
        index = _read(layout, split, paths, self._labels)
        problems = []
        if not len(index.objects) and not any(finder.state(label) for label in self._labels):
            text = f"no image of {split} has a label file; an empty one says that an image has no objects"
            problems.append(Problem(path_below(self._labels[0], root), 0, "missing file", text))
        if layout.names is None:  # the numbers that any split has
            others = [name for name in yolo_splits(root) if name != split] if images is None else []
            highest = max(_highest(index), *(_highest(_read_split(layout, name)) for name in others), -1)
            index = replace(index, classes=texts([str(number) for number in range(highest + 1)]))
        sizes = image_sizes(finder, f"yolo {split}", paths)
        image = np.repeat(np.arange(len(paths)), np.diff(index.first))
        faults = self._faults_of(index, sizes, paths)
        is_known = np.all(sizes[image] > 0, axis=1)
        objects, image = index.objects.take(is_known), image[is_known]
        objects = replace(objects, boxes=to_pixels(objects.boxes, sizes[image]))
        first = np.cumsum([0, *np.bincount(image, minlength=len(paths))])
        index = replace(index, objects=objects, first=first)
        row_of = {path: row for row, path in enumerate(paths)}
        rows = [row_of[path] for path in listed]
        super().__init__(root, split, index, rows, paths, sizes, split, problems, faults)

    def _faults_of(self, index: Index, sizes: np.ndarray, paths: Sequence[str]) -> dict[int, list[Fault]]:
        """Label files of several images, and of images whose size is not known."""
        images: dict[str, list[str]] = {}
        for label, path in zip(self._labels, paths):
            images.setdefault(label, []).append(os.path.basename(path))
        faults: dict[int, list[Fault]] = {}
        for row, label in enumerate(self._labels):
            if len(names := images[label]) > 1:
                faults[row] = [Fault(0, f"it is the label file of {len(names)} images: {', '.join(names)}")]
            elif not sizes[row].all() and index.first[row] < index.first[row + 1]:
                faults[row] = [Fault(0, "its image is missing or broken, so the boxes are of unknown size")]
        return faults

    def file(self, row: int) -> str:
        return path_below(self._labels[row], self.root)

    def strays(self) -> list[Problem]:
        finder, found = Finder(self.root), []
        for folder in dict.fromkeys(map(os.path.dirname, self._labels)):
            if folder == finder.root:
                continue
            known = {label for label in self._labels if os.path.dirname(label) == folder}
            images = {os.path.dirname(path) for path, label in zip(self.paths, self._labels) if label in known}
            for name in finder.files(folder):
                stem, suffix = os.path.splitext(name)
                if suffix.lower() != ".txt" or name == CLASSES or f"{folder}/{name}" in known:
                    continue
                if not any(finder.images_of(place, stem) for place in images):
                    where = ", ".join(path_below(place, self.root) for place in sorted(images))
                    file = path_below(f"{folder}/{name}", self.root)
                    found.append(Problem(file, 0, "missing file", f"there is no image {stem} in {where}"))
        return found


def _label_path(finder: Finder, image: str) -> str:
    """The path of an image's label file, whose suffix may be in upper case."""
    below = image[len(finder.root) + 1 :] if image.startswith(f"{finder.root}/") else ""
    path = f"{finder.root}/{label_name(below)}" if below else label_name(image)
    return finder.file(path) or path


def _read(layout: Layout, split: str, paths: Sequence[str], labels: Sequence[str]) -> Index:
    files = [path_below(path, layout.root) for path in paths]
    return read_yolo_index(layout.finder, split, files, labels, layout.names, layout.point_numbers)


def _read_split(layout: Layout, split: str) -> Index:
    paths = list(dict.fromkeys(_split_images(layout, split)))
    return _read(layout, split, paths, [_label_path(layout.finder, path) for path in paths])


def _highest(index: Index) -> int:
    return int(index.objects.labels.max(initial=-1))


class YOLODataset(DetectionDataset):
    """Splits of roots in YOLO layout; see DetectionDataset. Classes are by default those of data.yaml, by number."""

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        return yolo_splits(root)

    @classmethod
    def open_sources(cls, sources: Sequence[tuple[Path, str]]) -> list[Source]:
        return [YOLOSource(root, split) for root, split in sources]
