"""Losses and times of the latest steps, read from the device as seldom as possible."""

import math
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from detkit.runtime import distributed
from detkit.structures import Images, Targets

LOG_EVERY = 20  # steps between two lines of log.jsonl


class Meter:
    """Collects the loss parts of each step.

    On the CPU they are read, and checked to be finite, at each step. On a GPU that would make the host wait for every
    step, so they stay there and are read LOG_EVERY steps at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self.instant = device.type == "cpu"  # whether reading a loss costs nothing
        self.names: list[str] = []
        self.steps: list[list[float]] = []  # read, not yet logged
        self._numbers: list[int] = []
        self._pending: list[Tensor] = []  # on the device, one (parts,) tensor a step
        self.restart()

    def restart(self) -> None:
        """Begin to measure time anew: after what does not belong to a step, such as an evaluation."""
        self._since, self._waited, self._images = time.perf_counter(), 0.0, 0

    def timed(self, batches: Iterable[tuple[Images, Targets]]) -> Iterator[tuple[Images, Targets]]:
        """Pass batches on, and measure how long each was waited for."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            self._images += len(batch[0])
            yield batch

    def add(self, iteration: int, parts: list[dict[str, Tensor]]) -> None:
        """Note the loss parts of a step's micro-batches; no wait for the device."""
        self.names = list(parts[0])
        micro = [torch.stack([value.detach().float() for value in losses.values()]) for losses in parts]
        self._numbers.append(iteration)
        self._pending.append(torch.stack(micro).mean(0))

    def read(self) -> tuple[int, dict[str, float]] | None:
        """Read what is still on the device (waits for it); return the first step with a non-finite part, if any.

        As (iteration, loss parts).
        """
        if not self._pending:
            return None
        values = torch.stack(self._pending).tolist()
        numbers, self._numbers, self._pending = self._numbers, [], []
        self.steps.extend(values)
        for number, row in zip(numbers, values):
            if not all(map(math.isfinite, row)):
                return number, dict(zip(self.names, row))
        return None

    def summary(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return the mean loss parts since the last summary, over all processes, and the times; starts anew."""
        means = distributed.all_reduce_mean([sum(column) / len(self.steps) for column in zip(*self.steps)])
        losses = {"loss": sum(means), **dict(zip(self.names, means))}
        elapsed = time.perf_counter() - self._since
        times = {
            "images_per_second": round(self._images * distributed.world_size() / elapsed, 2),
            "data_share": round(self._waited / elapsed, 4),
        }
        self.steps = []
        self.restart()
        return losses, times
