"""Where the time of a work goes that several threads share."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock

import torch

Timed = Callable[[str], AbstractContextManager[None]]


def untimed(step: str) -> AbstractContextManager[None]:
    return nullcontext()


class Stopwatch:
    """Seconds of each step, summed over threads. device: which is waited for at the ends of steps in `on_device`."""

    def __init__(self, device: torch.device, on_device: tuple[str, ...] = ()) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._wait = on_device if device.type == "cuda" else ()
        self._device, self._lock = device, Lock()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
            if step in self._wait:
                torch.cuda.synchronize(self._device)
        finally:
            seconds = time.perf_counter() - start
            with self._lock:
                self.seconds[step] += seconds
