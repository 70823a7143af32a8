"""What the writers of the formats write: images of any data set, named for all formats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detkit.data.annotations import FLAGS, AnnotatedObject, box_area
from detkit.data.dataset import Record

Splits = dict[str, list["Item"]]


@dataclass(frozen=True)
class Item:
    """One image to write. name: unique in the data set, fit for a file."""

    name: str
    record: Record

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        return self.record.width, self.record.height

    @property
    def image_path(self) -> Path:
        """Path of its image."""
        return self.record.path

    @property
    def file(self) -> str:
        """Name of its image in the new data set."""
        return self.name + self.image_path.suffix

    def objects(self, classes: Sequence[str] | None = None) -> list[AnnotatedObject]:
        """Its objects, numbered from 1, boxes in the fewest digits, area NaN where it is that of the box.

        Their names are of `classes`, or the labels themselves.
        """
        given = self.record.annotations
        of_box = np.isclose(given.area, box_area(given.boxes), rtol=1e-5)
        names: list[Any] = [label if classes is None else classes[label] for label in given.labels.tolist()]
        boxes, areas = decimals(given.boxes).tolist(), np.where(of_box, math.nan, given.area).tolist()
        flags: dict[str, list[Any]] = {flag: getattr(given, flag).tolist() for flag in FLAGS}
        return [
            AnnotatedObject(name, tuple(box), area=area, number=i + 1, **{flag: flags[flag][i] for flag in FLAGS})
            for i, (name, box, area) in enumerate(zip(names, boxes, areas))
        ]


def unique_items(splits: Splits) -> list[Item]:
    """Return the items of all splits, each once."""
    return list({item.name: item for items in splits.values() for item in items}.values())


def plain(value: float) -> int | float:
    """Return a number as it is best written: without what summing left behind, and whole where it is whole."""
    value = round(value, 6)
    return int(value) if value == int(value) else value


def decimals(values: np.ndarray) -> np.ndarray:
    """Return float32 numbers as float64 of the fewest digits that tell them apart: 473.07, not 473.07000732."""
    return values.astype(np.str_).astype(np.float64)
