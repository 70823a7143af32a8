"""What the box regression learns from: features on disk, a file a class. VOC2007 has tens of gigabytes of them."""

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


@dataclass(frozen=True)
class FeatureFile:
    """Features (N, D) float32 in a file, of which slices of rows are read."""

    path: Path
    shape: tuple[int, int]

    def __getitem__(self, rows: slice) -> Tensor:
        first, last, _ = rows.indices(self.shape[0])
        count = (last - first) * self.shape[1]
        values = np.fromfile(self.path, np.float32, count, offset=first * self.shape[1] * 4)
        return torch.from_numpy(values).view(last - first, self.shape[1])


class Pairs:
    """Features of proposals on disk, and the deltas (N, 4) to their objects and these' labels (N,), in memory.

    What was added since `flush` is dropped where a run goes on from what it then saved.
    """

    def __init__(self, folder: Path, dim: int, classes: int, deltas: Tensor, labels: Tensor) -> None:
        """deltas, labels: of the pairs that are there, as `joined` returned them; none for new ones.

        UserError where the folder has fewer.
        """
        self.folder, self.dim, self.classes = folder, dim, classes
        self.deltas, self.labels = [deltas], [labels]
        counts = torch.bincount(labels, minlength=classes).tolist()
        for path, count in zip(self._paths(), counts):
            if count and (not path.is_file() or path.stat().st_size < count * dim * 4):
                raise UserError(f"{path}: has fewer than the {count} regions that last.pt counts; start a new run")
        with self._errors():
            folder.mkdir(exist_ok=True)
            for path, count in zip(self._paths(), counts):
                path.touch()
                os.truncate(path, count * dim * 4)

    def add(self, features: Tensor, deltas: Tensor, labels: Tensor) -> None:
        """Add features (n, D), deltas (n, 4) and labels (n,); host sync."""
        features, deltas, labels = features.float().cpu(), deltas.cpu(), labels.cpu()
        self.deltas.append(deltas)
        self.labels.append(labels)
        paths = list(self._paths())
        with self._errors():
            for label in labels.unique().tolist():
                with paths[label].open("ab") as file:
                    file.write(features[labels == label].numpy().data)

    def joined(self) -> tuple[Tensor, Tensor]:
        """Return all deltas (N, 4) and labels (N,)."""
        self.deltas, self.labels = [torch.cat(self.deltas)], [torch.cat(self.labels)]
        return self.deltas[0], self.labels[0]

    def flush(self) -> None:
        """Make what was added outlast a crash of the machine."""
        with self._errors():
            for path in self._paths():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    def of_class(self, label: int) -> tuple[FeatureFile, Tensor]:
        """Return features and deltas of a class."""
        deltas, labels = self.joined()
        deltas = deltas[labels == label]
        return FeatureFile(self.folder / str(label), (len(deltas), self.dim)), deltas

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _paths(self) -> Iterator[Path]:
        return (self.folder / str(label) for label in range(self.classes))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Name the folder in one line where the disk is full, or may not be written to."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder}: features of the box regression: {error.strerror or error}") from None
