"""COCO's JSON annotations, read into an index."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.annotations import FLAGS, AnnotatedImage, AnnotatedObject, Fault
from detkit.data.index import Index, cached_index, fingerprint, make_index, shortest_names, texts
from detkit.data.values import as_area, as_flag, as_name, as_number, as_path, as_size, path_below
from detkit.errors import UserError
from detkit.files import read_text

KEYS = ("images", "annotations", "categories")
# some converters from VOC call difficult objects "ignore"
FLAG_KEYS = {"iscrowd": "crowd", "difficult": "difficult", "ignore": "difficult", "truncated": "truncated"}
MAX_NUMBER = 1 << 63  # from which on an annotation is called by its position


@dataclass(frozen=True)
class COCOIndex(Index):
    """The index of one JSON file; classes in the order of their category ids.

    image_ids: (F,) and category_ids: (C,) texts, the ids as JSON, see `from_json`. general: (K,) lines that say what is
    wrong with the file as a whole. notes: (N,) lines on what was left out. masked: () int64, how many objects have
    a mask.
    """

    image_ids: np.ndarray
    category_ids: np.ndarray
    general: np.ndarray
    notes: np.ndarray
    masked: np.ndarray


def from_json(ids: np.ndarray) -> list[int | str]:
    """Return ids as the file has them: whole numbers of any size, or texts."""
    return [json.loads(key) if key.startswith('"') else int(key) for key in ids.tolist()]


def read_coco_index(root: Path, path: Path) -> COCOIndex:
    """Return the index of one JSON file; see `cached_index`. Its file is right for that size and modification time.

    Raises UserError, in one line, where this is no COCO file of objects.
    """
    try:
        state = path.stat()
    except OSError:
        raise UserError(f"no file {path}") from None
    name = path_below(path, root)
    digest = fingerprint([name, state.st_size, state.st_mtime_ns])
    return cached_index(root, f"coco {name}", digest, COCOIndex, lambda: build_coco_index(load_coco(path), str(path)))


def load_coco(path: Path) -> dict[str, Any]:
    """Read a COCO file: a mapping with lists of images, annotations and categories. UserError where it is none."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:  # of JSON, or of a number of thousands of digits
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
    notes: list[str] = []
    used = {key for one in content["annotations"] if type(key := one.get("category_id")) in (int, str)}
    classes, category_ids = _categories(content["categories"], used, source, notes)
    image_ids = _ids(content["images"], "image", source)
    images = [
        AnnotatedImage(_text(image.get("file_name")), [], as_size(image.get("width"), image.get("height")), [])
        for image in content["images"]
    ]
    general = [f"image {key} has no file_name" for image, key in zip(images, image_ids) if not image.file.strip()]
    image_of, class_of = dict(zip(image_ids, images)), dict(zip(category_ids, classes))
    seen: set[int | str] = set()
    for position, annotation in enumerate(content["annotations"], 1):
        key, number = annotation.get("id"), number_of(annotation, position)
        image, name = _find(image_of, annotation, "image_id"), _find(class_of, annotation, "category_id")
        if image is None:
            text = f"image_id {json.dumps(annotation.get('image_id'))[:60]} is not among the images"
            general.append(f"annotation {number}: {text}")
            continue
        if type(key) in (int, str):
            if key in seen:
                image.faults.append(Fault(number, "its id is there twice"))
            seen.add(key)
        if name is None:
            text = f"category_id {json.dumps(annotation.get('category_id'))[:60]} is not among the categories"
            image.faults.append(Fault(number, text))
            continue
        made = _object(annotation, name, number)
        if isinstance(made, AnnotatedObject):
            image.objects.append(made)
        else:
            image.faults.append(Fault(number, f"{name}: {made}"))
    return make_index(
        images,
        classes,
        shortest_names([as_path(image.file).strip() for image in images]),
        kind=COCOIndex,
        image_ids=texts([json.dumps(key) for key in image_ids]),
        category_ids=texts([json.dumps(key) for key in category_ids]),
        general=texts(general),
        notes=texts(notes),
        masked=np.array(sum(bool(annotation.get("segmentation")) for annotation in content["annotations"])),
    )


def number_of(annotation: dict[str, Any], position: int) -> int:
    """Return what an annotation is called: its id where that is a number, else its position from 1."""
    key = annotation.get("id")
    return key if type(key) is int and abs(key) < MAX_NUMBER else position


def _object(annotation: dict[str, Any], name: str, number: int) -> AnnotatedObject | str:
    """An object, or what is wrong with it."""
    box = _box(annotation.get("bbox"))
    if isinstance(box, str):
        return box
    flags: dict[str, Any] = dict.fromkeys(FLAGS, False)
    for key, flag in FLAG_KEYS.items():
        if (value := annotation.get(key)) is not None and value != 0:
            is_set = as_flag(value)
            if is_set is None:
                return f"{key} is {json.dumps(value)[:60]}, neither 0 (no, false) nor 1 (yes, true)"
            flags[flag] |= is_set
    area = as_area(annotation.get("area"))
    if area is None:
        return f"area is {json.dumps(annotation['area'])[:60]}, no number of square pixels"
    return AnnotatedObject(name, box, number=number, area=area, **flags)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else as_name(value)


def _categories(
    items: list[dict[str, Any]], used: set[Any], source: str, notes: list[str]
) -> tuple[list[str], list[int | str]]:
    """Names and ids in the order of the ids. Of categories of one name, those that no object is of are left out."""
    pairs = sorted((key, as_name(item.get("name"))) for key, item in zip(_ids(items, "category", source), items))
    counts = Counter(name for _, name in pairs)
    kept: dict[str, Any] = {}
    for key, name in pairs:
        if not name:
            raise UserError(f"{source}: category {json.dumps(key)} has no name, which is a text")
        if counts[name] > 1 and key not in used and (name in kept or any(k in used for k, n in pairs if n == name)):
            notes.append(f"category {json.dumps(key)}, called {name!r} as another, is left out: no object is of it")
            continue
        if name in kept:
            raise UserError(
                f"{source}: two categories are called {name!r}: {json.dumps(kept[name])}, {json.dumps(key)}"
            )
        kept[name] = key
    return list(kept), list(kept.values())


def _ids(items: list[dict[str, Any]], what: str, source: str) -> list:
    """The ids of images or categories: all integers, or all texts, each once."""
    ids = [item.get("id") for item in items]
    kinds = {type(key) for key in ids}
    if not kinds <= {int} and kinds != {str}:
        odd = next(key for key in ids if type(key) is not type(ids[0]) or type(key) not in (int, str))
        raise UserError(f"{source}: {what} id {json.dumps(odd)[:40]}: ids are all whole numbers or all texts")
    if len(set(ids)) != len(ids):
        twice = next(key for key, count in Counter(ids).items() if count > 1)
        raise UserError(f"{source}: two of the file's {what} ids are {json.dumps(twice)}")
    return ids


def _find(known: dict[Any, Any], annotation: dict[str, Any], key: str) -> Any:
    """Look up an id of a file, which may be of any JSON type; None where it is not known."""
    value = annotation.get(key)
    return known.get(value) if type(value) in (int, str) else None


def _box(box: Any) -> tuple[float, ...] | str:
    """COCO's [left, top, width, height] -> xyxy, or what is wrong with it."""
    numbers = [as_number(value) for value in box if not isinstance(value, str)] if isinstance(box, list) else []
    values = [value for value in numbers if value is not None]
    if len(values) != 4 or len(box) != 4:
        return f"bbox is {json.dumps(box)[:60]}, not [left, top, width, height] in numbers"
    left, top, width, height = values
    if width < 0 or height < 0:
        return f"bbox is {width:g} wide and {height:g} high"
    return left, top, left + width, top + height
