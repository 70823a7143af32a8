"""Training processes that are sent signals at random moments, and gone on with until they end by themselves."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

from tests.campaign.children import REPOSITORY, Children, expect
from tests.campaign.runs import KINDS, Trial, differences, prepare

SIGNALS = (*[(signal.SIGKILL,)] * 8, (signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT))
ENDED = (0, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)  # statuses that are in order
FILES = ("config.yaml", ".last.*", ".best.*", "last.pt", "log.jsonl", ".metrics.*", "plots", "samples/.*", ".report.*")
ATTEMPTS = 12  # at a run; the last ones are not disturbed
DISTURBED = 4
HANG = 300.0  # seconds in which a process has to end


def kill_at_random(kind: str, out: Path, seconds: float, seed: str, workers: int) -> Iterator[Trial]:
    """Yield trials with a kind of run for so many seconds; the folders of those that failed are kept in `out`."""
    home = out / f"kill-{kind}"
    home.mkdir(parents=True)
    with Children() as children:
        expect(children.call(prepare, kind, home, alone=True))
        start = time.monotonic()
        process = _start(home, KINDS[kind].command(home / "reference", workers), home / "reference.log")
        if process.wait(HANG * 10):
            raise RuntimeError((home / "reference.log").read_text()[-2000:])
        length = time.monotonic() - start
        number = 0
        while time.monotonic() - start < seconds:
            random, folder = Random(f"{seed} {kind} {number}"), home / f"run-{number}"
            command, log = KINDS[kind].command(folder, workers), home / f"run-{number}.log"
            how, faults = _disturb(random, home, command, folder, log, length)
            compared = (faults, []) if faults else expect(children.call(differences, home / "reference", folder))
            trial = Trial(f"{kind} {number}: {', '.join(how)}", *compared, len(how))
            if trial.equal and not trial.left:
                shutil.rmtree(folder)
                log.unlink()
            yield trial
            number += 1


def _disturb(
    random: Random, home: Path, command: list[str], folder: Path, log: Path, length: float
) -> tuple[list[str], list[str]]:
    """Begin a run and go on with it until it ends by itself; return the signals sent, and what was not in order."""
    how: list[str] = []
    faults: list[str] = []
    for attempt in range(ATTEMPTS):
        resume, before = (folder / "last.pt").exists(), log.stat().st_size if log.exists() else 0
        process = _start(home, ["--resume", str(folder)] if resume else command, log)
        if attempt < DISTURBED and (not attempt or random.random() < 0.7):
            moment = _wait(random, process, folder, length)
            numbers = random.choice(SIGNALS)
            if process.poll() is None:
                how.append(f"{'+'.join(number.name for number in numbers)} {moment}")
                for number in numbers:
                    _send(process, number)
                    time.sleep(random.choice((0, 0.001, 0.05, 0.3)))
        try:
            status = process.wait(HANG)
        except subprocess.TimeoutExpired:
            status = None
            faults.append(f"still running {HANG:.0f} s later")
        _send(process, signal.SIGKILL)  # and what it may have left running
        process.wait()
        said = log.read_bytes()[before:].decode(errors="replace")
        if said.rstrip().endswith("KeyboardInterrupt") and "detkit" not in said:
            continue  # Python itself was still starting
        if status not in ENDED or "Traceback" in said:
            faults.append(f"status {status}: {said.strip()[-300:]}")
            break
        if status == 0:
            break
    return how, faults


def _start(home: Path, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tools/train.py"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=home,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            start_new_session=True,
        )


def _send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the process and all it has started, as a terminal does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _wait(random: Random, process: subprocess.Popen[bytes], folder: Path, length: float) -> str:
    """Wait for a moment within a run of `length` seconds, at random or by what is in its folder; say which."""
    way, end = random.randrange(5), time.monotonic() + length
    if way < 3:
        seconds = random.uniform(0, length if way < 2 else min(1, length))
        end = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
        return f"after {seconds:.2f} s"
    name, later = random.choice(FILES), random.choice((0, 0, 0.001, 0.005, 0.02))
    while process.poll() is None and time.monotonic() < end and not any(folder.glob(name)):
        time.sleep(0.0003)
    time.sleep(later)
    return f"{later} s after {name}"
