"""An image of a data set and its objects: `dataset[i]`."""

import html
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detkit.batched import SHARED, Batched
from detkit.names import shown
from detkit.viz.draw import draw
from detkit.viz.shown import Shown


class TrueObject(NamedTuple):
    """One object. box: left, top, right, bottom in pixels of the image, continuous. ignore: not counted as found."""

    box: tuple[float, float, float, float]
    label: int
    name: str
    ignore: bool


@dataclass(frozen=True, repr=False)
class Sample(Batched, Shown):
    """An image and its n objects; has a length, and can be gone through. `==` compares values, not pixels.

    boxes: (n, 4) float32 xyxy in pixels of the image, continuous. labels: (n,) int64 index into `classes`. ignore: (n,)
    bool: difficult objects and crowds. classes: of the data set. id, path: of the image. size: (height, width).
    pixels: the image, (H, W, 3) RGB uint8.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    classes: tuple[str, ...] = field(metadata=SHARED)
    id: str = field(metadata=SHARED)
    path: Path = field(metadata=SHARED)
    pixels: np.ndarray = field(metadata=SHARED, compare=False)
    extra: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[TrueObject]:
        rows = zip(self.boxes.tolist(), self.labels.tolist(), self.ignore.tolist())
        return (TrueObject((*box,), label, self.classes[label], ignore) for box, label, ignore in rows)

    @property
    def names(self) -> list[str]:
        """The class of each object."""
        return [self.classes[label] for label in self.labels.tolist()]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def target(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (image (3, H, W) uint8, {"boxes", "labels", "iscrowd"}), as torchvision's references have them.

        Labels are those of detkit, from 0.
        """
        image = torch.from_numpy(self.pixels.copy()).permute(2, 0, 1)
        return image, {"boxes": self.boxes, "labels": self.labels, "iscrowd": self.ignore.long()}

    def plot(self) -> np.ndarray:
        """Return the image with its boxes and names, (H, W, 3) RGB uint8; those to ignore dashed."""
        return draw(self.pixels, self.boxes, self.labels, self.classes, ignore=self.ignore)

    def __repr__(self) -> str:
        return f"<Sample {self._title()}>"

    def _repr_html_(self) -> str:
        """The image and its objects, for a notebook."""
        return f"<div><p>{html.escape(self._title())}</p>{self._picture()}</div>"

    def _title(self) -> str:
        height, width = self.size
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        return shown(f"{self.id} {width}x{height}: {counts or 'no object'}")
