"""The VOC development kit's detection files: one `comp4_det_<split>_<class>.txt` a class.

A line is `id score xmin ymin xmax ymax`, with 1-based inclusive pixels; inside detkit such a box is
[xmin - 1, ymin - 1, xmax, ymax], continuous.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from detkit.errors import UserError
from detkit.evaluation.flat import check_detections
from detkit.files import read_text, write_atomic
from detkit.structures import DetectionSet


def read_comp4(
    folder: str | Path, split: str = "test", *, classes: Sequence[str] | None = None, ids: Sequence[str] | None = None
) -> DetectionSet:
    """Read a folder of detection files.

    classes: which, and in what order; by default those that the folder has files of, sorted. ids: the images of the
    data set; by default those that the files name. Boxes and scores are float64, as exact as the text.

    Raises UserError, naming file and line: a missing file, a line of another form, an image that is not in `ids`.
    """
    folder = Path(folder)
    prefix = f"comp4_det_{split}_"
    if classes is None:
        classes = sorted(path.stem.removeprefix(prefix) for path in folder.glob(f"{prefix}*.txt"))
    if not classes:
        raise UserError(f"{folder}: no {prefix}<class>.txt in it")
    known = None if ids is None else set(ids)
    names: list[str] = []
    values = []
    counts = []
    for name in classes:
        images, numbers = _read(folder / f"{prefix}{name}.txt", known)
        names += images
        values.append(torch.tensor(numbers, dtype=torch.float64))
        counts.append(len(images))
    ids = tuple(dict.fromkeys(names)) if ids is None else tuple(ids)
    index = {name: number for number, name in enumerate(ids)}
    image = torch.tensor([index[name] for name in names], dtype=torch.int64)
    table = torch.cat(values).reshape(-1, 5)
    boxes = table[:, 1:] - torch.tensor([1, 1, 0, 0])
    labels = torch.repeat_interleave(torch.tensor(counts))
    return DetectionSet(boxes, table[:, 0].clone(), labels, image, ids=ids, classes=tuple(classes))


def write_comp4(folder: str | Path, detections: DetectionSet, split: str = "test") -> list[Path]:
    """Write one file for each class, empty where it has no detections; return their paths.

    Scores have nine digits, which tell all float32 values apart, so that no order is lost; pixels have six decimals.
    """
    check_detections(detections)
    for name in detections.classes:
        if "/" in name or "\0" in name:
            raise UserError(f"class {name!r} cannot be part of a file name, as comp4 files need it")
    for name in detections.ids:
        if len(name.split()) != 1:
            raise UserError(f"image {name!r} cannot stand in a comp4 file, where a blank ends the name")
    lines: list[list[str]] = [[] for _ in detections.classes]
    boxes = detections.boxes.double().cpu() + torch.tensor([1, 1, 0, 0])
    columns = (detections.labels, detections.image, detections.scores)
    for label, image, score, box in zip(*(column.tolist() for column in columns), boxes.tolist()):
        left, top, right, bottom = box
        lines[label].append(f"{detections.ids[image]} {score:.9g} {left:.6f} {top:.6f} {right:.6f} {bottom:.6f}\n")
    paths = [Path(folder) / f"comp4_det_{split}_{name}.txt" for name in detections.classes]
    for path, class_lines in zip(paths, lines):
        write_atomic(path, "".join(class_lines))
    return paths


def _read(path: Path, known: set[str] | None) -> tuple[list[str], list[float]]:
    """Return the images of a file's lines and, flat, their five numbers each."""
    text = read_text(path, "; a class without detections has an empty one")
    names: list[str] = []
    numbers: list[float] = []
    for line, row in enumerate(map(str.split, text.split("\n")), 1):
        if not row:
            continue
        try:
            values = list(map(float, row[1:]))
        except ValueError:
            values = []
        if len(values) != 5 or not all(map(math.isfinite, values)):
            shown = " ".join(row)
            shown = shown if len(shown) <= 80 else shown[:79] + "…"
            raise UserError(f"{path}, line {line}: {shown!r} is not `id score xmin ymin xmax ymax`")
        if known is not None and row[0] not in known:
            raise UserError(f"{path}, line {line}: image {row[0]!r} is not in the data set's split")
        names.append(row[0])
        numbers += values
    return names, numbers
