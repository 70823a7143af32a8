"""Writer of data sets in YOLO layout."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detkit.data.annotations import FLAGS
from detkit.data.items import Item, Splits, decimals, plain, unique_items
from detkit.data.yolo_index import FLAGS_NAME, label_name

DIGITS = 12  # of a normalised number: a whole pixel of any image is whole again when it is read


def write_yolo(folder: Path, classes: Sequence[str], splits: Splits) -> dict[str, str]:
    """Write data.yaml, labels and, where need be, flags.json; return where the image of each item belongs.

    A split is a folder images/SPLIT. Where splits share images, each lies in the folder of the smallest of them, and
    the others are lists, SPLIT.txt. An image without objects has an empty label file.
    """
    home: dict[str, str] = {}
    for split, split_items in sorted(splits.items(), key=lambda pair: len(pair[1])):
        for item in split_items:
            home.setdefault(item.name, split)
    items = unique_items(splits)
    targets = {item.name: f"images/{home[item.name]}/{item.file}" for item in items}
    flags = {}
    for item in items:
        name = label_name(targets[item.name])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(yolo_rows(item), encoding="utf-8")
        if entry := _flags(item):
            flags[name] = entry
    entries = {}
    for split, split_items in splits.items():
        entries[split] = f"images/{split}"
        if any(home[item.name] != split for item in split_items):
            entries[split] = f"{split}.txt"
            text = "".join(f"./{targets[item.name]}\n" for item in split_items)
            (folder / entries[split]).write_text(text, encoding="utf-8")
    if flags:
        lines = (f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(entry)}" for name, entry in flags.items())
        (folder / FLAGS_NAME).write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    content = entries | ({"names": dict(enumerate(classes))} if classes else {})
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return targets


def yolo_rows(item: Item) -> str:
    """Return the label file of one image."""
    boxes = decimals(item.record.annotations.boxes)
    low, high = boxes[:, :2], boxes[:, 2:]
    rows = np.concatenate([(low + high) / 2 / item.size, (high - low) / item.size], 1)
    lines = []
    for label, row in zip(item.record.annotations.labels.tolist(), rows.tolist()):
        numbers = (f"{value:.{DIGITS}f}".rstrip("0").rstrip(".") for value in row)
        lines.append(f"{label} {' '.join(numbers)}\n")
    return "".join(lines)


def _flags(item: Item) -> dict[str, Any]:
    """The item's entry in flags.json, see `read_flags`; empty where the rows say all."""
    objects = item.objects()
    marks = {flag: [one.number for one in objects if getattr(one, flag)] for flag in FLAGS}
    entry: dict[str, Any] = {flag: numbers for flag, numbers in marks.items() if numbers}
    if area := {str(one.number): plain(one.area) for one in objects if not math.isnan(one.area)}:
        entry["area"] = area
    return {"rows": len(objects), **entry} if entry else {}
