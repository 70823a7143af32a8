"""Training of one detector in a process of its own, as `detkit train` does it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from detkit.comparison.entries import Entry
from detkit.comparison.times import forget, timed
from detkit.errors import UserError

COMMAND = (sys.executable, "-m", "detkit", "train")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL = 0.5  # seconds between two looks at a run's log
TAIL = 4096  # bytes of a log that its last line is looked for in


class Interrupted(Exception):
    """A signal, passed on to the training, which has ended by it; number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def _passed_on(process: subprocess.Popen) -> Iterator[list[int]]:
    """Pass signals on to a process, whose own handlers let it finish a step and save; yield the list of them."""
    received: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        # a run knows no SIGHUP: a terminal that is closed ends it as SIGTERM does
        process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    previous = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train_entry(entry: Entry, overrides: list[str], out: Path, progress: Callable[[int, int], None]) -> None:
    """Train an entry's config into its folder, or go on there; what the run prints goes to `log_path`.

    progress: called with iterations done and in all. Raises UserError, naming the log, where training failed, and
    Interrupted on SIGINT, SIGTERM and SIGHUP, once the run has saved its state.
    """
    assert entry.source is not None, "runs that are named are not trained"
    command = [*COMMAND, "--resume", str(entry.folder)]
    if not (entry.folder / "last.pt").is_file():
        forget(out, part(entry))
        command = [*COMMAND, str(entry.source), *overrides, "--out", str(entry.folder)]
        if entry.config.imports:  # those of this command's --import among them
            command.insert(-2, f"imports=[{','.join(entry.config.imports)}]")
    total = entry.iterations
    log = log_path(entry, out)
    with timed(out, part(entry)), open(log, "ab") as file:
        # a session of its own: Ctrl-C of a terminal would reach it beside what is passed on
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True
        )
        try:
            with _passed_on(process) as received:
                while process.poll() is None:
                    progress(min(_done(entry.folder), total), total)
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(POLL)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if received:
        raise Interrupted(received[-1])
    if process.returncode not in (0, 1) or not entry.finished:  # 1: without a plot or its report
        raise UserError(f"{entry.name}: training failed: {_reason(log, process.returncode)}; all it said: {log}")
    progress(total, total)


def part(entry: Entry) -> str:
    """Name of an entry's training in times.json."""
    return f"train {entry.name}"


def log_path(entry: Entry, out: Path) -> Path:
    """Return where a training's output goes: beside its folder, which has to be new for it."""
    return out / f"{entry.name}.log"


def _environment() -> dict[str, str]:
    """That of this process, in which the same detkit is found."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _done(folder: Path) -> int:
    """Iterations that log.jsonl tells of."""
    lines = _tail(folder / "log.jsonl").splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["iteration"])
        except (ValueError, KeyError, TypeError):
            continue  # cut off, at either end
    return 0


def _reason(log: Path, status: int) -> str:
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ") if lines else "it said nothing"
    return last if status >= 0 else f"ended by {signal.Signals(-status).name}"


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
