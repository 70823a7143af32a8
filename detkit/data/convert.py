"""Data sets from one format to another."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from detkit.data.coco import PREFIX
from detkit.data.coco_writer import write_coco
from detkit.data.dataset import DetectionDataset, notes_on, parse_splits
from detkit.data.formats import find_format, find_splits, open_sources
from detkit.data.items import Item, Splits
from detkit.data.voc_writer import write_voc
from detkit.data.yolo_writer import write_yolo
from detkit.errors import UserError, did_you_mean
from detkit.names import LONGEST, fit_name

WRITERS = {"voc": write_voc, "coco": write_coco, "yolo": write_yolo}
WAYS = ("link", "copy", "symlink")


@dataclass(frozen=True)
class Converted:
    """What was written; images: how many images, each counted once. notes: lines on what users should know."""

    images: int
    objects: int
    splits: dict[str, int]
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def convert(
    root: str | Path,
    out: str | Path,
    to: str,
    splits: Sequence[str] | None = None,
    format_name: str = "auto",
    images: str = "link",
    progress: Callable[[int, int], None] | None = None,
    outside: bool = False,
) -> Converted:
    """Write splits of a data set (default: all) in the format `to` into the new folder `out`.

    format_name: the format of `root`, see `find_format`. images: `link` makes hard links, and copies where that fails,
    as across disks; `copy`; `symlink`. The folder appears when it is complete. outside: whether images may lie outside
    of `root`, as those of a data set from elsewhere should not: it could name any file of this computer.

    An image is called by its id, with _ for / and for characters that not every format can hold.

    Kept are boxes, clipped to the image, classes, difficult, crowd, truncated, areas, images without objects, and the
    splits. Not kept are masks, key points, extra fields and what else a format may say; going to VOC, classes that no
    object has, and the order of the classes, which in VOC is the alphabet's. Raises UserError, in one line, for
    whatever is missing or broken.
    """
    if to not in WRITERS:
        raise UserError(f"no format {to!r} to convert to{did_you_mean(to, WRITERS)}")
    root, out = Path(root), Path(out)
    sources = parse_splits(root, splits if splits is not None else find_splits(root, format_name))
    kind = find_format(sources[0][0], format_name)
    opened = [open_sources([source], None, kind) for source in sources]
    classes = tuple(type(opened[0]).own_classes([index for one in opened for index in one.indices]))
    opened = [one if one.classes == classes else open_sources(one.sources, classes, kind) for one in opened]
    items = _items(opened)
    originals = {item.name: item.image_path for split_items in items.values() for item in split_items}
    if not outside:
        check_inside(root, originals.values())
    with new_folder(out) as folder:
        targets = WRITERS[to](folder, classes, items)
        for done, (name, target) in enumerate(targets.items(), 1):
            place_image(originals[name], folder / target, images)
            if progress is not None:
                progress(done, len(targets))
    objects = {item.name: len(item.record.annotations) for split_items in items.values() for item in split_items}
    images_of = {split: len(split_items) for split, split_items in items.items()}
    return Converted(len(objects), sum(objects.values()), images_of, classes, tuple(notes_on(opened)))


def _items(opened: Sequence[DetectionDataset]) -> Splits:
    """Name splits and images. An image of several splits is one item; different images of one name are told apart."""
    room = LONGEST - len(f"{PREFIX}.json")  # beside a split's name in that of a file
    bare = [fit_name(Path(split).stem.removeprefix(PREFIX), room) for one in opened for _, split in one.sources]
    names = [name if bare.count(name) == 1 else f"{one.sources[0][0].name}_{name}" for name, one in zip(bare, opened)]
    known: dict[Path, Item] = {}
    taken: set[str] = set()
    splits: Splits = {}
    if len(set(names)) != len(names):
        raise UserError(f"split {Counter(names).most_common(1)[0][0]} is named twice")
    for split, dataset in zip(names, opened):
        splits[split] = []
        for i in range(len(dataset)):
            record = dataset.record(i)
            if record.path not in known:
                if not (record.width and record.height):
                    raise UserError(f"no readable image {record.path}, and its annotation says no size")
                name = _free_name(record.id, split, taken)
                taken.add(name)
                known[record.path] = Item(name, record)
            splits[split].append(known[record.path])
    return splits


def _free_name(name: str, split: str, taken: Collection[str]) -> str:
    """A name for an image that is not taken and fits every format: no folders, nor what lists, XML and other systems
    cannot hold (control characters, line ends, what is not UTF-8, a dot or blanks at the edges)."""
    name = re.sub(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]|^[.\s]|\s$", "_", name)
    names = (name, f"{split}_{name}", *(f"{name}_{number}" for number in range(2, len(taken) + 3)))
    return next(one for one in names if one not in taken)


def check_inside(root: Path, images: Iterable[Path]) -> None:
    """Raise UserError where the file of an image, its links followed, is not below `root`."""
    top = root.resolve()
    folder_of = cache(os.path.realpath)
    for image in images:
        real = image.resolve() if image.is_symlink() else Path(folder_of(image.parent), image.name)
        if not real.is_relative_to(top):
            raise UserError(f"{image}: leads out of {root}, to {real}; --outside lets such images come along")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` on success, and goes on any error.

    Raises UserError where `path` is there already and not empty.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there already and is left as it is; name a new folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(
        prefix=f".{fit_name(path.name, 64)}.", dir=path.parent, ignore_cleanup_errors=True
    ) as temporary:
        folder = Path(temporary) / path.name
        folder.mkdir()
        yield folder
        os.replace(folder, path)


def place_image(image: Path, target: Path, how: str) -> None:
    """Bring an image to `target`, see `convert`; UserError if it is missing."""
    if how not in WAYS:
        raise UserError(f"no way {how!r} to bring images over{did_you_mean(how, WAYS)}")
    if not image.is_file():
        raise UserError(f"no image {image}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "symlink":
        target.symlink_to(image.resolve())
        return
    if how == "link":
        try:
            os.link(image.resolve(), target)
            return
        except OSError:
            pass  # another disk, or one without links
    shutil.copyfile(image, target)
