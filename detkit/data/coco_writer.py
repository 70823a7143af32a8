"""Writer of data sets in COCO layout."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detkit.data.items import Item, Splits, plain, unique_items
from detkit.files import write_atomic


def write_coco(folder: Path, classes: Sequence[str], splits: Splits) -> dict[str, str]:
    """Write annotations/instances_SPLIT.json below `folder`; return where the image of each item belongs.

    Category ids are 1, 2, ... in label order; an image of several splits has one id. Objects that are difficult or
    truncated have these keys, with 1, beside COCO's own.
    """
    for name in ("annotations", "images"):
        (folder / name).mkdir()
    categories = [{"id": label, "name": name} for label, name in enumerate(classes, 1)]
    numbers: dict[str, int] = {}
    for split, split_items in splits.items():
        images = []
        for item in split_items:
            key = numbers.setdefault(item.name, len(numbers) + 1)
            images.append({"id": key, "file_name": item.file, "width": item.size[0], "height": item.size[1]})
        objects = (entry for item in split_items for entry in _objects(item, numbers[item.name]))
        annotations = [{"id": number, **entry} for number, entry in enumerate(objects, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{split}.json"
        write_atomic(path, json.dumps(content, ensure_ascii=False) + "\n")  # which escapes what is no UTF-8
    return {item.name: f"images/{item.file}" for item in unique_items(splits)}


def _objects(item: Item, image: int) -> Iterator[dict[str, Any]]:
    for one in item.objects():
        left, top, right, bottom = one.box
        width, height = right - left, bottom - top
        yield {
            "image_id": image,
            "category_id": int(one.name) + 1,
            "bbox": [plain(value) for value in (left, top, width, height)],
            "area": plain(width * height if math.isnan(one.area) else one.area),
            "iscrowd": int(one.crowd),
            **({"difficult": 1} if one.difficult else {}),
            **({"truncated": 1} if one.truncated else {}),
        }
