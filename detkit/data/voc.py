"""Reader of PASCAL VOC data sets: XML files, images, and lists of both; masks of objects from SegmentationObject.

VOC's own folders are Annotations, JPEGImages and ImageSets/Main. Others are read, too: annotations/ or annotations/xmls
with images/, XML files and images in one folder, and, where there are no lists, folders of both that are called as the
splits (train, valid, test); in all of them, folders below.

VOC's boxes are 1-based inclusive pixels; they become [xmin - 1, ymin - 1, xmax, ymax], continuous edges of the upright
image, where they are read (voc_index.py) and turn back where they are written (voc_writer.py).
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detkit.data.annotations import Fault
from detkit.data.dataset import EVERYTHING, DetectionDataset
from detkit.data.finding import Finder, is_image, spellings
from detkit.data.image_sizes import image_sizes
from detkit.data.index import Index
from detkit.data.masks import MaskCheck, MaskFault, Masks, VOCMasks
from detkit.data.source import Problem, Source
from detkit.data.values import lines_of, path_below
from detkit.data.voc_index import read_index
from detkit.errors import UserError, did_you_mean
from detkit.files import read_text

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
XML_FOLDERS = ("Annotations", "labels", "JPEGImages", "images")  # in upper or lower case
IMAGE_FOLDERS = ("JPEGImages", "images")
SEGMENTED = "segmentation_"  # begins the splits that ImageSets/Segmentation lists
SPLIT_FOLDER = re.compile("(train|val|test)", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """Where a root has what. folder: of the XML files; names: theirs, relative to it, sorted. images: folders of
    images, in the order in which they are looked into. lists: split -> path of its list."""

    folder: str
    names: list[str]
    images: list[str]
    lists: dict[str, str]

    def splits(self) -> list[str]:
        """Names of the splits: of the lists, where there are none of the folders."""
        folders = {name.partition("/")[0] for name in self.names if "/" in name}
        return sorted(self.lists or filter(SPLIT_FOLDER.match, folders))


def find_layout(finder: Finder) -> Layout | None:
    """Return how a root is laid out, None where it has no XML files where they could be annotations."""
    images = [folder for name in IMAGE_FOLDERS if (folder := finder.folder(name))]
    folder, names = next(_xml_folders(finder), ("", []))
    return Layout(folder, sorted(names), images, voc_lists(finder)) if names else None


def _xml_folders(finder: Finder):
    """Yield folders of XML files and the names of these."""
    for name in XML_FOLDERS:
        folder = finder.folder(name)
        for place in (folder and finder.folder("xmls", folder), folder):
            names = [path[len(place) + 1 :] for path in finder.walk(place) if _is_xml(path)] if place else []
            if place and names:
                yield place, names
    # images and XML files side by side
    names = []
    for place in (finder.root, *finder.folders(finder.root)):
        files = finder.files(place)
        if any(map(is_image, files)):
            names += [f"{place}/{name}"[len(finder.root) + 1 :] for name in files if _is_xml(name)]
    if names:
        yield finder.root, names


def _is_xml(name: str) -> bool:
    return name[-4:].lower() == ".xml"


def voc_lists(finder: Finder) -> dict[str, str]:
    """Return the lists of a root's splits, by name."""
    sets = finder.folder("ImageSets")
    lists = {}
    for name, prefix in (("Segmentation", SEGMENTED), ("Main", "")):
        folder = finder.folder(name, sets) if sets else None
        files = finder.files(folder) if folder else {}
        lists |= {prefix + name[:-4]: f"{folder}/{name}" for name in sorted(files) if name[-4:].lower() == ".txt"}
    return lists


def is_voc(root: Path, others: bool) -> bool:
    """Whether a root is in VOC's format; where it has the signs of `others`, only VOC's own folders say so."""
    if (root / "ImageSets" / "Main").is_dir() or any((root / "Annotations").glob("*.xml")):
        return True
    return not others and find_layout(Finder(root)) is not None


def check_layout(root: Path, finder: Finder) -> Layout:
    """Return how a root is laid out; UserError, saying how to get or lay it out, unless it is in VOC's format."""
    if not root.is_dir():
        raise UserError(f"no data set at {root}; {how_to_get(root)}")
    layout = find_layout(finder)
    if layout is not None:
        return layout
    inner = sorted(p.parent.name for p in root.glob("*/Annotations"))
    hint = f"it holds {', '.join(inner)}: name splits as {inner[0]}/SPLIT" if inner else how_to_get(root)
    raise UserError(f"{root} has no folder Annotations of XML files, so it is not in VOC layout; {hint}")


def how_to_get(root: Path) -> str:
    """Return what to do about a data set that is not there."""
    year = re.search(r"(?:VOC|voc)(?:20)?(07|12)", str(root))
    if year:
        return f"fetch it with: python tools/dataset.py fetch voc{year[1]}"
    return "lay it out as ROOT/JPEGImages/*.jpg, ROOT/Annotations/*.xml, ROOT/ImageSets/Main/SPLIT.txt"


class VOCRoot:
    """The annotations and images of a root in VOC's format, of whatever split. paths, sizes, faults: see Source."""

    def __init__(self, root: Path) -> None:
        self.root, self._finder = root, Finder(root)
        self.layout = check_layout(root, self._finder)
        self.index: Index = read_index(self._finder, self.layout.folder, self.layout.names)
        self.faults: dict[int, list[Fault]] = {}
        self.paths: list[str] = []
        counts = Counter(self.index.ids.tolist())
        for row, (name, stated) in enumerate(zip(self.layout.names, self.index.files.tolist())):
            path, fault = self._find(name[:-4], stated)
            self.paths.append(path)
            if counts[name[:-4]] > 1:
                fault = "another file has this name, but for upper and lower case of its suffix"
            if fault:
                self.faults[row] = [Fault(0, fault)]
        self.sizes = image_sizes(self._finder, "", self.paths)

    def open_masks(self) -> VOCMasks | None:
        """Return the masks of the images, None where there is no folder of such."""
        folder = self._finder.folder("SegmentationObject")
        return None if folder is None else VOCMasks(folder, [name[:-4] for name in self.layout.names])

    def segmented(self) -> set[int] | None:
        """Return the rows of the images that lists say to have masks; None where there is no such list."""
        lists = [path for split, path in self.layout.lists.items() if split.startswith(SEGMENTED)]
        by_id = self.index.rows_by_id()
        names = {line.strip() for path in lists for line in lines_of(read_text(path))}
        return {by_id[name] for name in names if name in by_id} if lists else None

    def _find(self, name: str, stated: str) -> tuple[str, str]:
        """The image of an annotation: of its name, else of its <filename>; and what is wrong, "" where nothing is."""
        layout, finder = self.layout, self._finder
        sub, _, stem = name.rpartition("/")
        below = [f"{folder}/{sub}" if sub else folder for folder in (*layout.images, layout.folder)]
        folders = list(dict.fromkeys((*below, *(layout.images if sub else ()))))
        said = stated.strip().replace("\\", "/").rpartition("/")[2]
        for folder in folders:
            names = finder.images_of(folder, stem)
            if len(names) > 1 and said not in names:
                return (
                    f"{folder}/{names[0]}",
                    f"{', '.join(sorted(names))} are of its name; <filename> names none of them",
                )
            if names:
                return f"{folder}/{said if len(names) > 1 else names[0]}", ""
        found = finder.find_image(stated, (*folders, finder.root)) or (
            finder.find_image(said, folders) if said else None
        )
        return found or f"{folders[0]}/{stem}.jpg", ""

    def rows_of(self, split: str) -> tuple[list[int], list[str], str]:
        """Return the rows of a split in its order, what it lists that is not there, and the list; UserError for a
        missing or an empty split.

        A line of a list is an image's name, in any of `spellings`, with or without its suffix; in VOC's files for one
        class a number follows, which is left out.
        """
        layout = self.layout
        if split == EVERYTHING:
            return [*range(len(layout.names))], [], path_below(layout.folder, self.root)
        if split not in layout.splits():
            names = layout.splits()
            if not names:
                raise UserError(
                    f"{self.root} has no list of a split; make it with: python tools/dataset.py split {self.root}"
                )
            plain = [name for name in names if not name.endswith(("_train", "_val", "_trainval", "_test"))]
            raise UserError(f"no split {split!r} in {self._lists()}{did_you_mean(split, plain or names)}")
        if not layout.lists:
            return [row for row, name in enumerate(layout.names) if name.startswith(f"{split}/")], [], split
        path = layout.lists[split]
        lines = lines_of(read_text(path))
        if not lines:
            raise UserError(f"{path}: the split is empty; it should hold one image name a line")
        by_id = self.index.rows_by_id()
        by_path = {os.path.splitext(image)[0]: row for row, image in enumerate(self.paths)}
        bases = [*layout.images, layout.folder, self._finder.root]
        rows, missing = [], []
        for line in lines:
            row = by_id.get(line)
            row = self._row_of(line, by_id, by_path, bases) if row is None else row
            if row is None:
                missing.append(line.strip() if "/" in line else line.split()[0])
            else:
                rows.append(row)
        return rows, missing, path_below(path, self.root)

    def _lists(self) -> str:
        lists = list(self.layout.lists.values())
        return os.path.dirname(lists[0]) if lists else str(self.root)

    @staticmethod
    def _row_of(line: str, by_id: dict[str, int], by_path: dict[str, int], bases: Sequence[str]) -> int | None:
        for text in (line, line.strip(), re.sub(r"\s+-?[0-9]+\s*$", "", line), line.split()[0]):
            for spelling in spellings(text):
                plain = os.path.splitext(spelling)[0] if is_image(spelling) else spelling
                if plain in by_id:
                    return by_id[plain]
                for base in bases:
                    path = os.path.normpath(os.path.join(base, plain))
                    if path in by_path:
                        return by_path[path]
        return None


class VOCSource(Source):
    """One split of a root in VOC's format."""

    origin = 1

    def __init__(self, opened: VOCRoot, split: str) -> None:
        rows, missing, listed = opened.rows_of(split)
        self._opened = opened
        problems = [
            Problem(f"Annotations/{name}.xml", 0, "missing file", f"no annotation, which split {split!r} lists")
            for name in dict.fromkeys(missing)
        ]
        super().__init__(
            opened.root, split, opened.index, rows, opened.paths, opened.sizes, listed, problems, opened.faults
        )

    def find_masks(self) -> Masks:
        masks = self._opened.open_masks()
        if masks is None:
            return super().find_masks()
        for row in self.rows.tolist():
            if not masks.path(row).is_file():
                raise UserError(
                    f"{masks.path(row)} is missing, which has the masks of an image of {self.split}; VOC's images with "
                    f"masks are the splits {SEGMENTED}train, {SEGMENTED}val and {SEGMENTED}trainval"
                )
        return masks

    def mask_check(self) -> MaskCheck | None:
        masks = self._opened.open_masks()
        if masks is None:
            return None
        listed = self._opened.segmented()

        def check(row: int) -> list[MaskFault]:
            refused = [fault.number for fault in self.index.faults(row)]
            return masks.check(row, *self.annotated(row), refused, listed is None or row in listed)

        return check

    def file(self, row: int) -> str:
        layout = self._opened.layout
        return path_below(f"{layout.folder}/{layout.names[row]}", self.root)


class VOCDataset(DetectionDataset):
    """Splits of roots in VOC layout; see DetectionDataset.

    Classes are by default those of all annotations of the roots, sorted (which for VOC is its official order).
    """

    split_file = "ImageSets/Main/{}.txt"

    @classmethod
    def open_sources(cls, sources: Sequence[tuple[Path, str]]) -> list[Source]:
        roots = {root: VOCRoot(root) for root in dict.fromkeys(root for root, _ in sources)}
        return [VOCSource(roots[root], split) for root, split in sources]

    @classmethod
    def own_classes(cls, indices: Sequence[Index]) -> list[str]:
        return sorted(super().own_classes(indices))

    @classmethod
    def splits(cls, root: Path) -> list[str]:
        """Return the names of the splits of a root without VOC's files for one class, such as cat_train."""
        finder = Finder(root)
        lists = sorted(voc_lists(finder))
        if not lists:
            layout = find_layout(finder)
            return layout.splits() if layout is not None else []
        if not any("_" in name for name in lists):
            return lists
        layout = check_layout(root, finder)
        classes = set(read_index(finder, layout.folder, layout.names).classes.tolist())
        return [name for name in lists if name.rpartition("_")[0] not in classes]
