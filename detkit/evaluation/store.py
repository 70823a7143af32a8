"""detections.json: the detections of a data set in one file.

{"format": "detkit detections 1", "precision": "float32", "classes": [name, ...], "images": [id, ...],
 "columns": ["image", "class", "score", "left", "top", "right", "bottom"], "detections": [[0, 14, 0.9, ...], ...]}

`image` and `class` are indices into the lists before them; boxes are continuous pixels of the image, 0 at its left and
upper edge. Of a detector that finds masks there is "masks" as well, run lengths as COCO has them, one for each
detection: [{"size": [height, width], "counts": "..."}, ...]. Numbers have as many digits as their precision needs, so
what is read is what was written, bit for bit.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch

from detkit import rle
from detkit.errors import UserError
from detkit.evaluation.flat import check_detections
from detkit.files import read_text, write_atomic
from detkit.rle import RLE
from detkit.structures import DetectionSet

FORMAT = "detkit detections 1"
COLUMNS = ("image", "class", "score", "left", "top", "right", "bottom")
FORMATS = {"float32": "%.9g", "float64": "%r"}  # as many digits as tell all values apart


def write_detections(path: str | Path, detections: DetectionSet) -> None:
    """Write detections.json, whole or not at all. UserError for a score or box that is not finite."""
    check_detections(detections)
    wide = torch.float64 in (detections.boxes.dtype, detections.scores.dtype)
    precision = "float64" if wide else "float32"
    header = {
        "format": FORMAT,
        "precision": precision,
        "classes": detections.classes,
        "images": detections.ids,
        "columns": COLUMNS,
    }
    line = f"[%d,%d,{','.join([FORMATS[precision]] * 5)}]"
    columns = (detections.image, detections.labels, detections.scores, *detections.boxes.unbind(1))
    rows = ",\n".join([line % row for row in zip(*(column.tolist() for column in columns))])
    text = json.dumps(header, ensure_ascii=False)
    masks = ""
    if detections.masks is not None:
        masks = ',\n"masks": [\n' + ",\n".join(json.dumps(rle.to_json(mask)) for mask in detections.masks) + "\n]"
    write_atomic(path, f'{text[:-1]},\n"detections": [\n{rows}\n]{masks}}}\n')


def read_detections(path: str | Path) -> DetectionSet:
    """Read detections.json. Raises UserError, in one line, for whatever is not as `write_detections` writes it."""
    return parse_detections(path, read_results(path))


def read_results(path: str | Path) -> Any:
    """Return what is in a JSON file of detections: a mapping is one of detkit's, a list COCO's results."""
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: not detections, its lists are nested too deep") from None


def parse_detections(path: str | Path, content: Any) -> DetectionSet:
    """`read_detections` of what its file holds."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = f"format is {content['format']!r}" if isinstance(content, dict) and "format" in content else "no format"
        raise UserError(f"{path}: {found}, expected {FORMAT!r}, as evaluate writes detections.json, or COCO's results")
    for key in ("precision", "classes", "images", "columns", "detections"):
        if key not in content:
            raise UserError(f"{path}: no {key!r} in it")
    if content["precision"] not in tuple(FORMATS):
        raise UserError(f"{path}: precision is {content['precision']!r}, expected one of {', '.join(FORMATS)}")
    if content["columns"] != list(COLUMNS):
        raise UserError(f"{path}: columns are {content['columns']!r}, expected {', '.join(COLUMNS)}")
    classes, ids = (_names(path, key, content[key]) for key in ("classes", "images"))
    rows = content["detections"]
    table = _table(path, rows)
    dtype = getattr(torch, content["precision"])
    image, labels = table[:, 0], table[:, 1]
    for name, column, known in (("image", image, ids), ("class", labels, classes)):
        wrong = (column < 0) | (column >= len(known)) | (column != column.floor())
        if wrong.any():
            row = int(wrong.int().argmax())
            value = rows[row][COLUMNS.index(name)]
            raise UserError(f"{path}: detection {row}: {name} {value} is not an index into the list of {len(known)}")
    return DetectionSet(
        boxes=table[:, 3:].to(dtype, copy=True),
        scores=table[:, 2].to(dtype, copy=True),
        labels=labels.long(),
        image=image.long(),
        ids=ids,
        classes=classes,
        masks=_masks(path, content["masks"], len(rows)) if "masks" in content else None,
    )


def _masks(path: str | Path, masks: Any, count: int) -> tuple[RLE, ...]:
    """The run lengths of so many detections, all of them whole."""
    if not isinstance(masks, list) or len(masks) != count:
        raise UserError(f"{path}: 'masks' is not a list of {count} masks, one for each detection")
    parsed = [rle.parse(mask) for mask in masks]
    for row, mask in enumerate(parsed):
        if isinstance(mask, str):
            raise UserError(f"{path}: the mask of detection {row} {mask}")
    return tuple(mask for mask in parsed if not isinstance(mask, str))


def _names(path: str | Path, key: str, names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: {key!r} is not a list of names")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: {key!r} names {twice!r} twice")
    return tuple(names)


def _table(path: str | Path, rows: Any) -> torch.Tensor:
    """List of rows -> (D, 7) float64, all finite."""
    if not isinstance(rows, list):
        raise UserError(f"{path}: 'detections' is not a list")
    try:
        table = torch.tensor(rows, dtype=torch.float64) if rows else torch.zeros(0, len(COLUMNS), dtype=torch.float64)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        table = torch.zeros(0, 0)
    if table.shape != (len(rows), len(COLUMNS)) or not table.isfinite().all():
        bad = (index for index, row in enumerate(rows) if not _is_row(row))
        raise UserError(f"{path}: detection {next(bad, 0)} is not {len(COLUMNS)} finite numbers: {', '.join(COLUMNS)}")
    return table


def _is_row(row: Any) -> bool:
    try:
        return len(row) == len(COLUMNS) and all(math.isfinite(value) for value in row)
    except (TypeError, OverflowError):
        return False
