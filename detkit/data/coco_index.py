"""COCO's JSON annotations, read into an index."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.annotations import AnnotatedObject, Annotations
from detkit.data.index import Index, cached_index, fingerprint, shortest_names
from detkit.errors import UserError
from detkit.files import read_text

KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class COCOIndex(Index):
    """The index of one JSON file; classes in the order of their category ids.

    image_ids: (F,) and category_ids: (C,), int64 or text, as the file has them. general: (K,) lines that say what is
    wrong with the file as a whole.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    general: np.ndarray


def read_coco_index(root: Path, path: Path) -> COCOIndex:
    """Return the index of one JSON file; see `cached_index`. Its file is right for that size and modification time.

    Raises UserError, in one line, where this is no COCO file of objects.
    """
    try:
        state = path.stat()
    except OSError:
        raise UserError(f"no file {path}") from None
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    digest = fingerprint([name, state.st_size, state.st_mtime_ns])
    return cached_index(root, f"coco {name}", digest, COCOIndex, lambda: build_coco_index(load_coco(path), str(path)))


def load_coco(path: Path) -> dict[str, Any]:
    """Read a COCO file: a mapping with lists of images, annotations and categories. UserError where it is none."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: not valid JSON: nested too deeply") from None
    missing = [key for key in KEYS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise UserError(f"{path}: not COCO's annotations of objects: it has no list of {', '.join(missing)}")
    for key in KEYS:
        for position, item in enumerate(content[key], 1):
            if not isinstance(item, dict):
                raise UserError(f"{path}: {key}, item {position}: {json.dumps(item)[:40]} is not a mapping")
    return content


def build_coco_index(content: dict[str, Any], source: str) -> COCOIndex:
    """Turn the content of a COCO file into arrays; `source` names it in errors, in one line."""
    general: list[str] = []
    categories, category_ids = _categories(content["categories"], source)
    image_ids = _ids(content["images"], "image", source)
    files = [str(image.get("file_name") or "").replace("\\", "/") for image in content["images"]]
    for name, key in zip(files, image_ids):
        if not name:
            general.append(f"image {key} has no file_name")
    label_of = {key: label for label, key in enumerate(category_ids)}
    row_of = {key: row for row, key in enumerate(image_ids)}
    objects: list[list[AnnotatedObject]] = [[] for _ in files]
    problems: list[list[str]] = [[] for _ in files]
    seen: set[int] = set()
    for position, annotation in enumerate(content["annotations"], 1):
        key = annotation.get("id")
        number = key if type(key) is int else position
        row = _find(row_of, annotation.get("image_id"))
        if row is None:
            text = f"image_id {json.dumps(annotation.get('image_id'))} is not among the images"
            general.append(f"annotation {number}: {text}")
            continue
        if number in seen:
            problems[row].append(f"annotation {number}: its id is there twice")
        seen.add(number)
        label = _find(label_of, annotation.get("category_id"))
        if label is None:
            text = f"category_id {json.dumps(annotation.get('category_id'))} is not among the categories"
            problems[row].append(f"annotation {number}: {text}")
            continue
        box, fault = _box(annotation.get("bbox"))
        if box is None:
            problems[row].append(f"annotation {number} ({categories[label]}): {fault}")
            continue
        area = annotation.get("area")
        area = float(area) if _is_number(area) else math.nan
        # some converters from VOC call difficult objects "ignore"
        difficult = bool(annotation.get("difficult") or annotation.get("ignore"))
        crowd, truncated = bool(annotation.get("iscrowd")), bool(annotation.get("truncated"))
        objects[row].append(AnnotatedObject(label, box, number, difficult, crowd, truncated, area))
    sizes = [[_side(image.get(side)) for side in ("width", "height")] for image in content["images"]]
    return COCOIndex(
        ids=np.array(shortest_names(files), dtype=np.str_),
        files=np.array(files, dtype=np.str_),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        problems=np.array(["\n".join(lines) for lines in problems], dtype=np.str_),
        first=np.cumsum([0, *map(len, objects)]),
        objects=Annotations.from_objects([item for of_image in objects for item in of_image]),
        classes=np.array(categories, dtype=np.str_),
        image_ids=np.array(image_ids),
        category_ids=np.array(category_ids),
        general=np.array(general, dtype=np.str_),
    )


def _categories(items: list[dict[str, Any]], source: str) -> tuple[list[str], list]:
    """Names and ids in the order of the ids."""
    ids = _ids(items, "category", source)
    pairs = sorted((key, str(item.get("name") or "").strip()) for key, item in zip(ids, items))
    for key, name in pairs:
        if not name:
            raise UserError(f"{source}: category {key} has no name")
    names = [name for _, name in pairs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{source}: two categories are called {twice!r}")
    return names, [key for key, _ in pairs]


def _ids(items: list[dict[str, Any]], what: str, source: str) -> list:
    """The ids of images or categories: all integers, or all texts, each once."""
    ids = [item.get("id") for item in items]
    kinds = {type(key) for key in ids}
    if not kinds <= {int} and kinds != {str}:
        odd = next(key for key in ids if type(key) is not type(ids[0]) or type(key) not in (int, str))
        raise UserError(f"{source}: {what} id {json.dumps(odd)[:40]}: ids are all whole numbers or all texts")
    if len(set(ids)) != len(ids):
        seen: set = set()
        twice = next(key for key in ids if key in seen or seen.add(key))
        raise UserError(f"{source}: two of the file's {what} ids are {json.dumps(twice)}")
    return ids


def _find(numbers: dict[Any, int], key: Any) -> int | None:
    """Look up an id of a file, which may be of any JSON type."""
    return numbers.get(key) if type(key) in (int, str) else None


def _box(box: Any) -> tuple[tuple[float, ...] | None, str]:
    """COCO's [left, top, width, height] -> xyxy, or why not."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return None, f"bbox is {json.dumps(box)[:60]}, not [left, top, width, height] in numbers"
    left, top, width, height = map(float, box)
    if width < 0 or height < 0:
        return None, f"bbox is {width:g} wide and {height:g} high"
    return (left, top, left + width, top + height), ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _side(value: Any) -> int:
    return int(value) if _is_number(value) and value > 0 else 0
