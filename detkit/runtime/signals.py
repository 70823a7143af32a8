"""SIGTERM and Ctrl-C finish the step instead of tearing it apart."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_back() -> Iterator[None]:
    """Let both signals wait for the end of this, and in a process that it starts until that calls `let_through`.

    Else a process that gets one before it has handlers of its own would die of it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        let_through()


def let_through() -> None:
    """Let both signals come, those too that were held back."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class Stopped(Exception):
    """Training was asked to stop and has saved its state: number of the signal, what came last, folder of the run."""

    def __init__(self, number: int, done: str, folder: Path) -> None:
        super().__init__(f"{signal.Signals(number).name}: {folder / 'last.pt'} saved after {done}")
        self.signal = number
        self.folder = folder


class Interrupt:
    """While entered, notes the first SIGINT or SIGTERM in `received`; a second one acts as usual."""

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()

    def __exit__(self, *_: object) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
