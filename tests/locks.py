"""Locks that another process holds."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD = """
import sys, time
from detkit.runtime.lock import locked
with locked(sys.argv[1], "it"):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_by_another(path: Path) -> Iterator[int]:
    """Let another process hold the lock file `path`, until it is killed; yield its number."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process.pid
        finally:
            process.kill()
