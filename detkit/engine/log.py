"""What a run says: to log.jsonl, the screen and its callbacks. Only rank 0 says anything."""

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console

from detkit.errors import UserError
from detkit.files import write_file
from detkit.names import shown
from detkit.runtime.progress import Progress

if TYPE_CHECKING:
    from detkit.engine.callbacks import Callbacks

BAR = "steps"


class Log:
    """A run's records. Enter it to show progress.

    log.jsonl has one JSON object a line, each with `iteration` (steps done) and either loss parts or an evaluation.
    best: the highest mAP on val before this. callbacks: hear the same.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        iterations: int,
        *,
        writes: bool = True,
        best: float | None = None,
        callbacks: "Callbacks | None" = None,
    ) -> None:
        self.path = folder / "log.jsonl"
        self.writes = writes
        self.console = Console(quiet=not writes, highlight=False)
        self._iterations = iterations
        self._start = start
        self._begun = time.monotonic()
        self._best = best
        self._progress = Progress(self.console)
        self._first_losses = True
        self._callbacks = callbacks
        if callbacks is not None:
            callbacks.begin(start)

    def __enter__(self) -> Self:
        self._progress.move(BAR, self._start, self._iterations)
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def step(self, done: int) -> None:
        """Move the bar."""
        self._progress.move(BAR, done, self._iterations)

    def losses(self, done: int, losses: dict[str, float], times: dict[str, float], rate: float, seen: str) -> None:
        """Record the mean loss parts of the steps up to `done`, and show them. seen: how many images, in words."""
        self._write({"iteration": done, **losses, "lr": rate, **times})
        parts = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        speed = f"{times['images_per_second']:.1f} images/s  data {times['data_share']:.0%}"
        best = "" if self._best is None else f"  best val mAP {self._best:.4f}"
        status = f"{seen}  {parts}  lr {rate:.2g}{best}"
        self._progress.note(status)
        self._progress.move(BAR, done, self._iterations, speed=speed)
        if self._progress.line_due(self._first_losses or done == self._iterations):
            left = (time.monotonic() - self._begun) / (done - self._start) * (self._iterations - done)
            self.say(f"{done}/{self._iterations}  {status}  {speed}  {timedelta(seconds=round(left))} left")
        self._first_losses = False
        if self._callbacks is not None:
            self._callbacks.step(done, {**losses, "lr": rate, **times})

    def evaluation(self, done: int, metrics: dict[str, Any], best: bool) -> None:
        """Record an evaluation (metrics as in metrics.json)."""
        self._write({"iteration": done, **metrics})
        self._best = metrics["mAP"] if best else self._best
        ap = "undefined, no objects" if metrics["mAP"] is None else f"{metrics['mAP']:.4f}"
        protocol = f"{metrics['metric']}, IoU {metrics['iou']}, {metrics['images']} images, {metrics['seconds']:.1f} s"
        stage = "" if metrics.get("stage", "sgd") == "sgd" else f" {metrics['stage']}"
        self.say(
            f"{done}/{self._iterations}{stage}  {metrics['split']} mAP {ap} ({protocol}){', the best so far' * best}"
        )
        if self._callbacks is not None:
            self._callbacks.evaluation(done, metrics)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(shown(text), markup=False, soft_wrap=True)

    def _write(self, entry: dict[str, Any]) -> None:
        if not self.writes:
            return
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}") from None


def read_lines(path: Path) -> list[str]:
    """Return the lines of a log.jsonl but for one cut off by a kill; none where there is no such file."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log.jsonl, none where there is no such file; UserError for a line that is none."""
    records = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("iteration"), int):
            raise UserError(f"{path}: line {number} is damaged; remove it")
        records.append(record)
    return records


def truncate(path: Path, lines: int) -> None:
    """Keep the first so many lines, so that a resumed run does not repeat the others."""
    if path.exists():
        kept = "".join(read_lines(path)[:lines])
        if kept.encode() != path.read_bytes():
            write_file(path, kept)
