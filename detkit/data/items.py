"""What the writers of the formats write: images of any data set, named for all formats."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detkit.data.dataset import Record, box_area, decimals

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
        return decimals(self.record.boxes)

    def own_areas(self) -> list[float | None]:
        """The area of each object, None where it is that of the box."""
        given = self.record.area
        same = np.isclose(given, box_area(self.record.boxes), rtol=1e-5)
        return [None if equal else area for area, equal in zip(given.tolist(), same.tolist())]


def plain(value: float) -> int | float:
    """Return a number as it is best written: without what summing left behind, and whole where it is whole."""
    value = round(value, 6)
    return int(value) if value == int(value) else value
