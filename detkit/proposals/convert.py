"""Published boxes and plain JSON, to a store and back.

MATLAB: files as those of R-CNN and Fast R-CNN's `selective_search_data`: a cell array `boxes` of (N, 4) matrices
[y1 x1 y2 x2], 1-based and inclusive, and mostly a cell array `images` of the images' names; without it the boxes are in
the order of the split, as Fast R-CNN reads them.

JSON: boxes are [left, top, right, bottom] in continuous pixels of the image, either

    {"000005": [[12, 30, 200, 180.5], ...], ...}

or, where there are scores, and as `write_json` writes it,

    [{"image": "000005", "boxes": [[12, 30, 200, 180.5], ...], "scores": [0.9, ...]}, ...]
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.dataset import DetectionDataset
from detkit.data.items import decimals
from detkit.data.proposal_store import ProposalStore, check_boxes, check_inside, make_manifest, match_ids, write_store
from detkit.errors import UserError
from detkit.files import read_text, write_atomic
from detkit.proposals.matlab import read_variables


@dataclass(frozen=True)
class Boxes:
    """What a file holds: ids: names of the images, None where they have none; boxes, scores: as in `write_store`."""

    ids: list[str] | None
    boxes: list[np.ndarray]
    scores: list[np.ndarray] | None = None


def read_boxes(path: str | Path) -> Boxes:
    """Read a .mat or .json file of boxes. Raises UserError, in one line, for whatever is not as described above."""
    path = Path(path)
    readers = {".mat": read_mat, ".json": read_json}
    if path.suffix not in readers:
        raise UserError(f"{path}: boxes are read from files that end with {' or '.join(readers)}")
    if not path.is_file():
        raise UserError(f"no file {path}")
    return readers[path.suffix](path)


def read_mat(path: Path) -> Boxes:
    """Read a MATLAB file of boxes; (y1, x1, y2, x2), 1-based inclusive, becomes continuous xyxy."""
    values = read_variables(path, ("boxes", "images"))
    cells = values["boxes"].ravel()
    if values["boxes"].dtype != object:
        raise UserError(f"{path}: 'boxes' is no cell array with the boxes of each image")
    boxes = [_from_matlab(path, number, cell) for number, cell in enumerate(cells, 1)]
    if "images" not in values:
        return Boxes(None, boxes)
    ids = [_text(path, number, cell) for number, cell in enumerate(values["images"].ravel(), 1)]
    if len(ids) != len(boxes):
        raise UserError(f"{path}: 'images' has {len(ids)} cells, 'boxes' has {len(boxes)}")
    return Boxes(ids, boxes)


def _from_matlab(path: Path, number: int, cell: Any) -> np.ndarray:
    where = f"{path}: boxes{{{number}}}"
    if not isinstance(cell, np.ndarray) or cell.dtype.kind not in "fiu":
        raise UserError(f"{where} holds no numbers")
    if not cell.size:
        return np.zeros((0, 4), dtype=np.float32)
    if cell.ndim != 2 or cell.shape[1] != 4:
        raise UserError(f"{where} has shape {cell.shape}, expected (N, 4): y1, x1, y2, x2")
    # to signed numbers first: published files hold uint16, in which 0 - 1 is 65535
    y1, x1, y2, x2 = cell.astype(np.float64).T
    boxes = np.stack([x1 - 1, y1 - 1, x2, y2], 1).astype(np.float32)
    check_boxes(where, boxes)
    return boxes


def _text(path: Path, number: int, cell: Any) -> str:
    if not isinstance(cell, np.ndarray) or cell.dtype.kind != "U" or cell.size != 1:
        raise UserError(f"{path}: images{{{number}}} is not the name of an image")
    name = str(cell.item())
    return Path(name).stem if name.endswith((".jpg", ".png")) else name


def read_json(path: Path) -> Boxes:
    """Read a JSON file of boxes, in either form."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if isinstance(content, dict):
        content = [{"image": name, "boxes": boxes} for name, boxes in content.items()]
    if not isinstance(content, list):
        raise UserError(f"{path}: expected {{IMAGE: [[left, top, right, bottom], ...]}}")
    ids, boxes, scores = [], [], []
    for number, entry in enumerate(content):
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or "boxes" not in entry:
            raise UserError(f"{path}: entry {number}: expected {{'image': NAME, 'boxes': [...]}}")
        where = f"{path}: image {entry['image']}"
        image_boxes = _numbers(where, "boxes", entry["boxes"])
        image_boxes = image_boxes if len(image_boxes) else np.zeros((0, 4))
        check_boxes(where, image_boxes)
        ids.append(entry["image"])
        boxes.append(image_boxes.astype(np.float32))
        if "scores" in entry:
            scores.append(_numbers(where, "scores", entry["scores"]).astype(np.float32))
            if scores[-1].shape != (len(image_boxes),):
                raise UserError(f"{where}: {len(image_boxes)} boxes and scores of shape {scores[-1].shape}")
    if scores and len(scores) != len(ids):
        raise UserError(f"{path}: {len(scores)} of {len(ids)} images have scores; either all have or none")
    return Boxes(ids, boxes, scores or None)


def _numbers(where: str, key: str, values: Any) -> np.ndarray:
    try:
        numbers = np.array(values)
    except ValueError:  # lists of different lengths
        numbers = np.array(None)
    if numbers.dtype.kind not in "fiu" or numbers.ndim == 0:
        items = "[left, top, right, bottom]" if key == "boxes" else "numbers"
        raise UserError(f"{where}: {key} is not a list of {items}")
    if np.abs(numbers, dtype=np.float64).max(initial=0) > np.finfo(np.float32).max:
        raise UserError(f"{where}: {key} has a number that float32 cannot hold")
    return numbers


def to_store(source: str | Path, out: str | Path, dataset: DetectionDataset | None = None) -> None:
    """Convert a .mat or .json file to a store.

    With a data set the names are checked: all its images are there, and no box reaches beyond its image, which is how
    exchanged coordinates show. Raises UserError, in one line, for whatever is wrong.
    """
    read = read_boxes(source)
    ids = read.ids
    if ids is None:
        if dataset is None:
            raise UserError(f"{source}: no 'images' in it; say whose boxes they are with --dataset ROOT --split SPLIT")
        if len(dataset) != len(read.boxes):
            raise UserError(f"{source}: boxes of {len(read.boxes)} images, {dataset.name} has {len(dataset)}")
        ids = list(dataset.ids)
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"{source}: image {twice} is there twice")
    manifest = make_manifest("converted", {"from": Path(source).name}, ids)
    if dataset is not None:
        rows = match_ids(dataset.ids, ids)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            raise UserError(
                f"{source}: no boxes of image {dataset.ids[missing[0]]} of {dataset.name} "
                f"({len(missing)} of {len(dataset)} are missing)"
            )
        for i, row in enumerate(rows):
            check_inside(source, dataset, i, read.boxes[row])
    write_store(out, ids, read.boxes, read.scores, manifest=manifest)


def write_json(path: str | Path, store: ProposalStore) -> None:
    """Write a store as JSON, in the list form. Numbers have as many digits as their float32 values need."""
    entries = []
    for row, name in enumerate(store.ids):
        entry: dict[str, Any] = {"image": name, "boxes": decimals(store.boxes(row)).tolist()}
        scores = store.scores(row)
        if scores is not None:
            entry["scores"] = decimals(scores).tolist()
        entries.append(json.dumps(entry, ensure_ascii=False))
    write_atomic(path, "[\n" + ",\n".join(entries) + "\n]\n")
