"""Work in child processes, so that a crash, an endless loop or too much memory is an outcome and no end."""

import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

REPOSITORY = Path(__file__).parents[2]
HEADER = struct.Struct("<Q")  # the length of the message that follows


@dataclass(frozen=True)
class Outcome:
    """What came of a piece of work.

    value: what it returned. fault: what went wrong, in one line, "" where nothing did; place: where in detkit, as far
    as that is known; details: a traceback. signal: that ended the child, 0 where none did.
    """

    value: Any = None
    fault: str = ""
    place: str = ""
    details: str = ""
    signal: int = 0


class Children:
    """A server (see server.py), whose children do what `call` gives them. Use it in a `with`."""

    def __init__(self) -> None:
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # bit-equal sums need one order, forks one thread
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.campaign.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env=os.environ | threads,
            start_new_session=True,
        )

    def call(self, work: Callable[..., Any], *arguments: Any, alone: bool = False) -> Outcome:
        """Do `work(*arguments)`, of which all can be pickled, in a child. alone: in one that has done nothing else."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        message = pickle.dumps((alone, work, arguments))
        self._server.stdin.write(HEADER.pack(len(message)) + message)
        self._server.stdin.flush()
        head = self._server.stdout.read(HEADER.size)
        if len(head) < HEADER.size:
            raise RuntimeError(f"the server of child processes ended with status {self._server.wait()}")
        return pickle.loads(self._server.stdout.read(HEADER.unpack(head)[0]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()  # which ends the server and its child
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()


def expect(outcome: Outcome) -> Any:
    """Return the value of work that has to succeed, such as preparations."""
    if outcome.fault:
        raise RuntimeError(f"{outcome.fault}\n{outcome.details}")
    return outcome.value
