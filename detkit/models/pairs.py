"""What the box regression learns from: pairs on disk, a file a class. VOC2007 has tens of gigabytes of them."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detkit.errors import UserError

DELTAS = 4  # numbers of a row that follow its features


@dataclass(frozen=True)
class FeatureFile:
    """The features (N, D) float32 of a file of pairs, of which slices of rows are read."""

    path: Path
    shape: tuple[int, int]

    def __getitem__(self, rows: slice) -> Tensor:
        first, last, _ = rows.indices(self.shape[0])
        width = self.shape[1] + DELTAS
        values = np.fromfile(self.path, np.float32, (last - first) * width, offset=first * width * 4)
        return torch.from_numpy(values).view(last - first, width)[:, :-DELTAS]


class Pairs:
    """Features of regions and the deltas to their objects, class by class in a folder.

    counts: (K,) int64, of each class. What was added since `flush` is dropped where a run goes on from its counts.
    """

    def __init__(self, folder: Path, dim: int, counts: Tensor) -> None:
        """dim: of the features. counts: of what is there, 0 for new ones; UserError where the folder has less."""
        self.folder, self.dim, self.counts = folder, dim, counts.clone()
        sizes = [count * (dim + DELTAS) * 4 for count in counts.tolist()]
        for path, size in zip(self._paths(), sizes):
            if size and (not path.is_file() or path.stat().st_size < size):
                raise UserError(f"{path}: has fewer regions than last.pt counts; start a new run")
        with self._errors():
            folder.mkdir(exist_ok=True)
            for path, size in zip(self._paths(), sizes):
                path.touch()
                os.truncate(path, size)

    def add(self, features: Tensor, deltas: Tensor, labels: Tensor) -> None:
        """Add features (n, D), deltas (n, 4) and labels (n,); host sync."""
        rows, labels = torch.cat((features, deltas), 1).float().cpu(), labels.cpu()
        added = torch.bincount(labels, minlength=len(self.counts))
        with self._errors():
            for path, label in zip(self._paths(), range(len(added))):
                if added[label]:
                    with path.open("ab") as file:
                        file.write(rows[labels == label].numpy().data)
        self.counts += added

    def flush(self) -> None:
        """Make what was added outlast a crash of the machine."""
        with self._errors():
            for path in self._paths():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    def of_class(self, label: int) -> tuple[FeatureFile, Tensor]:
        """Return features (N, D), still on disk, and deltas (N, 4) of a class."""
        path, count = self.folder / str(label), int(self.counts[label])
        if not count:
            return FeatureFile(path, (0, self.dim)), torch.zeros(0, DELTAS)
        rows = np.memmap(path, np.float32, "r", shape=(count, self.dim + DELTAS))
        return FeatureFile(path, (count, self.dim)), torch.from_numpy(rows[:, -DELTAS:].copy())

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> Iterator[Path]:
        return (self.folder / str(label) for label in range(len(self.counts)))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Name the folder in one line where the disk is full, or may not be written to."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder}: features of the box regression: {error.strerror or error}") from None
