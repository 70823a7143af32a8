"""Damaged files of one format, read in child processes."""

import os
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from detkit.errors import UserError
from tests.campaign.children import Children, Outcome, expect
from tests.campaign.commands import OUT, USAGE_ERROR, check_outcome
from tests.campaign.formats import FORMATS, Files

MADE = (".detkit-index", OUT)  # begins the names of what commands may leave in a folder


class Fuzzer:
    """A folder with valid files of a format, and what happens with damaged ones in their place."""

    def __init__(self, children: Children, format_name: str, folder: Path) -> None:
        self.format, self.folder, self._children = FORMATS[format_name], folder, children
        folder.mkdir(parents=True)
        self.seed: Any = expect(children.call(_prepare, format_name, folder, alone=True))
        self._valid = {path: path.read_bytes() for path in self._files()}
        self._times = {path: path.stat().st_mtime_ns for path in self._valid}

    def draw(self, random: Random) -> Files:
        """Draw damaged files."""
        return self.format.draw(random, self.seed)

    def read(self, files: Files) -> Outcome:
        """Read them in the place of the valid ones, which are put back."""
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        outcome = self._children.call(_read, self.format.name, self.folder)
        shutil.rmtree(self.folder / OUT, ignore_errors=True)
        drawn = {self.folder / name for name in files}
        left = [path for path in self._files() if path not in self._valid]
        strange = [path for path in left if path not in drawn and not path.name.startswith(MADE)]
        for path in left:
            path.unlink()
        for path, content in self._valid.items():
            if not path.is_file() or path in drawn or path.stat().st_mtime_ns != self._times[path]:
                path.write_bytes(content)
                self._times[path] = path.stat().st_mtime_ns
        if strange and not outcome.fault:
            return Outcome(None, f"left behind: {strange[0].relative_to(self.folder)}", "rule")
        return outcome

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and OUT not in path.parts[-2:]]


def _prepare(format_name: str, folder: Path) -> Any:
    os.chdir(folder)
    return FORMATS[format_name].prepare()


def _read(format_name: str, folder: Path) -> None:
    os.chdir(folder)
    try:
        FORMATS[format_name].read()
    except UserError as error:
        check_outcome(USAGE_ERROR, "", "error: " + " ".join(str(error).split()))  # as the command line prints it


@dataclass
class Tally:
    """How the cases of a format went; faults: how often each kind of failure was seen."""

    name: str
    cases: int
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        """How many cases failed."""
        return sum(self.faults.values())

    def __str__(self) -> str:
        kinds = sorted(self.faults.items(), key=lambda each: -each[1])
        row = f"| {self.name} | {self.cases} | {self.failures} | {len(kinds)} | {self.seconds:.0f} s |"
        return "\n".join([row, *(f"    {count:5} {kind}" for kind, count in kinds)])


def fuzz(children: Children, name: str, cases: int, seed: str, out: Path) -> Tally:
    """Read so many damaged files of a format; of what fails, the first of each kind is kept in out/NAME-NUMBER.

    A case is a function of seed, format and its number.
    """
    tally, start = Tally(name, cases), time.monotonic()
    fuzzer = Fuzzer(children, name, out / "work" / name)
    for number in range(cases):
        files = fuzzer.draw(Random(f"{seed} {name} {number}"))
        outcome = fuzzer.read(files)
        if outcome.fault:
            kind = kind_of(outcome)
            if kind not in tally.faults:
                keep(out / f"{name}-{len(tally.faults) + 1}", files, f"case {number}, seed {seed}", outcome)
            tally.faults[kind] = tally.faults.get(kind, 0) + 1
    tally.seconds = time.monotonic() - start
    shutil.rmtree(fuzzer.folder)
    return tally


def kind_of(outcome: Outcome) -> str:
    """Name what failures of one cause share: the place in detkit and the exception, else the words without numbers."""
    words = outcome.fault if outcome.place in ("", "rule") else outcome.fault.partition(":")[0]
    return f"{outcome.place} {re.sub('[^A-Za-z_`. ]+', ' ', words)}".strip()[:80]


def keep(folder: Path, files: Files, title: str, outcome: Outcome) -> None:
    """Write what failed, and how, into a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "what.txt").write_text(f"{title}\n{outcome.place} {outcome.fault}\n\n{outcome.details}", errors="replace")
