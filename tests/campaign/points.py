"""Training killed before each of its file operations, and gone on with: the result is that of an undisturbed run."""

import io
import os
import shutil
import signal
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from detkit.cli import run_command
from tests.campaign.children import Children, Outcome, expect
from tests.campaign.runs import KINDS, Trial, differences, prepare
from tests.campaign.stopping import watch


class Points:
    """The file operations of a run of some kind, each of which can be where it is killed."""

    def __init__(self, children: Children, kind: str, folder: Path, workers: int = 0) -> None:
        self.kind, self.home, self._children, self._workers = KINDS[kind], folder, children, workers
        folder.mkdir(parents=True)
        expect(children.call(prepare, kind, folder, alone=True))
        self.reference = folder / "reference"
        status, said, self.operations = expect(self._train(self.reference, None, resume=False))
        if status:
            raise RuntimeError(f"{kind}: {said}")

    def kill(self, number: int) -> Trial:
        """Kill a run before its operation `number`, from 0 on, and go on with it.

        That is by --resume once there is a last.pt, else by the same command. Every third run is killed once more on
        its way. The folder of a run that went wrong is kept.
        """
        folder = self.home / f"killed-{number}"
        trial = self._kill(number, folder)
        if trial.equal and not trial.left:
            shutil.rmtree(folder)
        return trial

    def _kill(self, number: int, folder: Path) -> Trial:
        point = f"before {self.operations[number]} ({number + 1} of {len(self.operations)})"
        outcome = self._train(folder, number, resume=False)
        if outcome.signal != signal.SIGKILL:
            return Trial(point, [f"was not killed: {outcome.fault or outcome.value}"])
        resume = (folder / "last.pt").exists()
        again = number % 3 == 2
        if again:
            self._train(folder, number // 2, resume=resume)
            resume = (folder / "last.pt").exists()
        outcome = self._train(folder, None, resume=resume)
        if outcome.fault:
            return Trial(point, [outcome.fault])
        status, said, _ = outcome.value
        if status:
            return Trial(point, [f"{'--resume' if resume else 'the same command'} ends with status {status}: {said}"])
        compared = expect(self._children.call(differences, self.reference, folder))
        return Trial(point, *compared, signals=1 + again)

    def _train(self, folder: Path, stop: int | None, *, resume: bool) -> Outcome:
        arguments = ["--resume", str(folder)] if resume else self.kind.command(folder, self._workers)
        return self._children.call(train, self.home, arguments, folder, stop, alone=True)


def train(home: Path, arguments: list[str], folder: Path, stop: int | None) -> tuple[int, str, list[str]]:
    """Train, but die before the file operation `stop`; return status, what stderr has, operations in `folder`."""
    os.chdir(home)
    operations: list[str] = []

    def see(event: str, path: str) -> None:
        if len(operations) == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        operations.append(f"{event.removeprefix('os.')} {path}")

    watch(folder, see)
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        status = run_command("train", arguments)
    return status, said.getvalue().strip(), operations
