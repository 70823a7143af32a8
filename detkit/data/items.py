"""What the writers of the formats write: images of any data set, named for all formats."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detkit.data.annotations import box_area
from detkit.data.dataset import Record

Splits = dict[str, list["Item"]]


@dataclass(frozen=True)
class Item:
    """One image to write. name: unique in the data set, fit for a file. size: (width, height) of the annotation."""

    name: str
    record: Record
    size: tuple[int, int]

    @property
    def image_path(self) -> Path:
        """Path of its image."""
        return self.record.path

    @property
    def file(self) -> str:
        """Name of its image in the new data set."""
        return self.name + self.image_path.suffix

    def boxes(self) -> np.ndarray:
        """(N, 4) float64 continuous xyxy, of the fewest digits."""
        return decimals(self.record.annotations.boxes)

    def annotated_areas(self) -> list[float | None]:
        """The area of each object, None where it is that of the box."""
        objects = self.record.annotations
        of_box = np.isclose(objects.area, box_area(objects.boxes), rtol=1e-5)
        return [None if same else area for area, same in zip(objects.area.tolist(), of_box.tolist())]


def plain(value: float) -> int | float:
    """Return a number as it is best written: without what summing left behind, and whole where it is whole."""
    value = round(value, 6)
    return int(value) if value == int(value) else value


def decimals(values: np.ndarray) -> np.ndarray:
    """Return float32 numbers as float64 of the fewest digits that tell them apart: 473.07, not 473.07000732."""
    return values.astype(np.str_).astype(np.float64)
