"""Exported networks of other forms, run as the usual ones are."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.models.parts import PartRun


class OfBatches:
    """A network of `batch` images, run for any number. batched: which of its outputs have an entry an image."""

    def __init__(self, run: PartRun, batch: int, batched: Sequence[bool]) -> None:
        self.run, self.batch, self.batched = run, batch, batched

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        count = len(next(iter(inputs.values())))
        # the last image fills the last batch up
        batches = torch.arange(-(-count // self.batch) * self.batch).clamp(max=count - 1).split(self.batch)
        outputs = [self.run(**{name: value[rows] for name, value in inputs.items()}) for rows in batches]
        return tuple(
            torch.cat(parts)[:count] if several else parts[0] for several, parts in zip(self.batched, zip(*outputs))
        )


class AfterNMS:
    """A network with NMS inside: what it kept is scored -inf for all classes but its own, and goes the usual way."""

    def __init__(self, run: PartRun, classes: int) -> None:
        self.run, self.classes = run, classes

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        boxes, scores, labels = self.run(**inputs)
        table = scores.new_full((*labels.shape, self.classes + 1), -torch.inf)  # the last column is for padding
        table.scatter_(-1, labels.where(labels >= 0, self.classes).unsqueeze(-1), scores.unsqueeze(-1))
        return boxes, table[..., :-1]
