"""COCO's results: a JSON list of {"image_id", "category_id", "bbox": [left, top, width, height], "score"}.

pycocotools, detectron2, mmdetection, ultralytics and `detkit detect --format coco` write detections so. The ids are
those of an annotation file, which `detkit.data.result_ids` looks up; here they become images and classes.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detkit import rle
from detkit.errors import UserError
from detkit.rle import RLE
from detkit.structures import DetectionSet

KEYS = ("image_id", "category_id", "bbox", "score")


class COCOResults(NamedTuple):
    """A file's entries, in order. boxes: (D, 4) float64 xyxy; scores: (D,) float64; the ids as the file has them.
    masks: of every entry, where every one has a `segmentation`."""

    path: Path
    image_ids: list[int | str]
    category_ids: list[int | str]
    boxes: Tensor
    scores: Tensor
    masks: tuple[RLE, ...] | None = None


def parse_coco_results(path: Path, content: Sequence[Any]) -> COCOResults:
    """Return the entries of a file, of which `content` is the list; UserError names the first wrong one."""
    try:
        columns = [[entry[key] for entry in content] for key in KEYS]
    except (TypeError, KeyError):
        raise _wrong(path, content) from None
    image_ids, category_ids, boxes, scores = columns
    try:
        table = torch.tensor(boxes, dtype=torch.float64).reshape(len(content), -1) if content else torch.zeros(0, 4)
        values = torch.tensor(scores, dtype=torch.float64)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise _wrong(path, content) from None
    kinds = {type(key) for key in (*image_ids, *category_ids)}
    fits = table.shape == (len(content), 4) and values.shape == (len(content),) and kinds <= {int, str}
    if not fits or not table.isfinite().all() or not values.isfinite().all() or (table[:, 2:] < 0).any():
        raise _wrong(path, content)
    table = table.double()
    masks = [rle.parse(entry["segmentation"]) for entry in content] if content and all(map(_is_masked, content)) else []
    for row, mask in enumerate(masks):
        if isinstance(mask, str):
            raise UserError(f"{path}: entry {row}: its segmentation {mask}")
    xyxy = torch.cat((table[:, :2], table[:, :2] + table[:, 2:]), 1)
    known = tuple(mask for mask in masks if not isinstance(mask, str))
    return COCOResults(path, image_ids, category_ids, xyxy, values, known or None)


def name_coco_results(
    results: COCOResults,
    images: Mapping[int | str, int],
    categories: Mapping[int | str, int],
    *,
    ids: tuple[str, ...],
    classes: tuple[str, ...],
    origin: str,
) -> DetectionSet:
    """Return detections of the images `ids` and the classes `classes`.

    images, categories: id -> index into these. origin: what has them, for the UserError about an id that is not there.
    """
    columns = []
    for key, known, values in (
        ("image_id", images, results.image_ids),
        ("category_id", categories, results.category_ids),
    ):
        try:
            columns.append(torch.tensor([known[value] for value in values], dtype=torch.int64))
        except KeyError:
            entry = next(index for index, value in enumerate(values) if value not in known)
            value = json.dumps(values[entry], ensure_ascii=False)[:60]
            raise UserError(f"{results.path}: entry {entry}: {key} {value} is not in {origin}") from None
    image, labels = columns
    boxes, scores = results.boxes, results.scores
    return DetectionSet(boxes, scores, labels, image, ids=ids, classes=classes, masks=results.masks)


def _wrong(path: Path, content: Sequence[Any]) -> UserError:
    """The error about the first entry that is none."""
    for index, entry in enumerate(content):
        if text := _fault(entry):
            return UserError(f"{path}: entry {index}: {text}")
    return UserError(f"{path}: not COCO's results, a list of mappings with {', '.join(KEYS)}")


def _fault(entry: Any) -> str:
    """What is wrong with an entry, "" for nothing."""
    if not isinstance(entry, dict):
        return f"{json.dumps(entry)[:40]} is not a mapping with {', '.join(KEYS)}"
    if missing := [key for key in KEYS if key not in entry]:
        return f"no {' and no '.join(map(repr, missing))} in it; keypoints, and masks without boxes, are not scored"
    for key in KEYS[:2]:
        if type(entry[key]) not in (int, str):
            return f"{key} {json.dumps(entry[key])[:40]} is neither a whole number nor a text"
    box = entry["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"bbox {json.dumps(box)[:60]} is not four finite numbers: left, top, width, height"
    if min(box[2:]) < 0:
        return f"bbox {json.dumps(box)[:60]} has a negative width or height"
    return "" if _is_number(entry["score"]) else f"score {json.dumps(entry['score'])[:40]} is not a finite number"


def _is_masked(entry: Any) -> bool:
    return isinstance(entry.get("segmentation"), dict)


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False
