"""Which images and classes of a data set the ids in COCO's results mean."""

import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from detkit.data.coco import COCODataset
from detkit.data.coco_index import build_coco_index, from_json, load_coco
from detkit.data.dataset import DetectionDataset
from detkit.data.values import as_path
from detkit.errors import UserError

COMPANION = "coco_images.json"  # which `detkit detect --format coco` writes beside its results


class ResultIds(NamedTuple):
    """images: id -> index into the data set's ids. categories: id -> index into `classes`. origin: what has them.

    note: a line on what was assumed, "" for nothing.
    """

    images: Mapping[int | str, int]
    categories: Mapping[int | str, int]
    classes: tuple[str, ...]
    origin: str
    note: str = ""


def result_ids(dataset: DetectionDataset, results: Path, used: Collection[int | str]) -> ResultIds:
    """Return what the ids in a file of COCO's results mean.

    Beside coco_images.json, which `detkit detect --format coco` writes, they are those of that file. Else a COCO data
    set has them. Others have none: there images are called as their files are, and categories counted, in the order of
    the data set's classes; used: the category ids of the results, which must tell whether from 0 or from 1.
    Raises UserError where that cannot be told, or coco_images.json names other images.
    """
    companion = results.with_name(COMPANION)
    if companion.is_file():
        return _of_companion(dataset, companion)
    names = _by_name(dataset)
    if isinstance(dataset, COCODataset):
        images = {key: index for index, key in enumerate(dataset.image_ids)}
        if not any(isinstance(key, str) for key in images):  # some tools write the file's name instead of the id
            images |= {name: index for name, index in names.items() if isinstance(name, str)}
        categories = {key: label for label, key in enumerate(dataset.category_ids) if key is not None}
        return ResultIds(images, categories, dataset.classes, str(dataset.opened[0].path))
    first = _first_category(dataset, results, used)
    numbered: dict[int | str, int] = {first + label: label for label in range(len(dataset.classes))}
    note = (
        f"{dataset.name} has no ids: images are taken by the names of their files, and categories {first} to "
        f"{first + len(dataset.classes) - 1} as {', '.join(dataset.classes)}"
    )
    return ResultIds(names, numbered, dataset.classes, dataset.name, note)


def _by_name(dataset: DetectionDataset) -> dict[int | str, int]:
    """What images are called -> their index; numbers, too, for those that are called by one, 7 for 000007."""
    numbers = Counter(int(name) for name in dataset.ids if name.isdecimal())
    images: dict[int | str, int] = {}
    for index, name in enumerate(dataset.ids):
        images[name] = index
        if name.isdecimal() and numbers[int(name)] == 1:
            images[int(name)] = index
    return images


def _first_category(dataset: DetectionDataset, results: Path, used: Collection[int | str]) -> int:
    """0 or 1, from which on the results count categories."""
    count = len(dataset.classes)
    how = f"{dataset.name} has {count} classes and no ids for them"
    if odd := [key for key in used if not isinstance(key, int) or not 0 <= key <= count]:
        raise UserError(f"{results}: category_id {odd[0]!r}, but {how}")
    if (0 in used) == (count in used) and used:
        why = "are both used" if 0 in used else "are both not used"
        hint = f"score against the COCO file that they were written for, or put {COMPANION} beside the results"
        raise UserError(f"{results}: category ids may begin at 0 or at 1: {how}, and 0 and {count} {why}; {hint}")
    return 0 if 0 in used else 1


def _of_companion(dataset: DetectionDataset, path: Path) -> ResultIds:
    """The ids of coco_images.json, whose images must be those of the data set."""
    index = build_coco_index(load_coco(path), str(path))
    called: dict[str, list[int]] = {}
    for number in range(len(dataset)):
        called.setdefault(dataset.path(number).name, []).append(number)
    rows = [_image(dataset, called, path, as_path(file)) for file in index.files.tolist()]
    if twice := [number for number, count in Counter(rows).items() if count > 1]:
        raise UserError(f"{path}: image {dataset.ids[twice[0]]} of {dataset.name} is there twice")
    categories = {key: label for label, key in enumerate(from_json(index.category_ids))}
    missing = len(dataset) - len(rows)
    note = f"image and category ids are those of {path}"
    note += f", without {missing} of the {len(dataset)} images: they count as without detections" if missing else ""
    images = dict(zip(from_json(index.image_ids), rows))
    return ResultIds(images, categories, tuple(index.classes.tolist()), str(path), note)


def _image(dataset: DetectionDataset, called: Mapping[str, list[int]], path: Path, file: str) -> int:
    """Which image of a data set a file is: the same file, or, where one of the two is not there, one called so."""
    found = called.get(file.rpartition("/")[2], [])
    there = os.path.exists(file)
    others = [number for number in found if there and dataset.path(number).exists()]
    if same := [number for number in others if dataset.path(number).samefile(file)]:
        return same[0]
    possible = [number for number in found if number not in others]
    if len(possible) == 1:
        return possible[0]
    if possible:
        raise UserError(f"{path}: {len(possible)} images of {dataset.name} are called as {file}")
    what = f"another file than {dataset.path(others[0])}" if others else f"not in {dataset.name}"
    raise UserError(f"{path}: image {file} is {what}")
