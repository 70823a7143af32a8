"""How far long work has come: a bar for each piece of it on a terminal, elsewhere a line now and then."""

import time
from typing import Self

import rich.progress
from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_EVERY = 20.0  # seconds between two lines where the output is not a terminal


class Progress:
    """Shows the progress of pieces of work, each known by its text. Enter it; nothing is shown before the first call.

    console: where to, stderr by default; a quiet one shows nothing. unit: of the counts, in lines. transfer: counts are
    bytes. transient: bars vanish at the end.
    """

    def __init__(
        self, console: Console | None = None, *, unit: str = "", transfer: bool = False, transient: bool = False
    ) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.unit = unit
        self.transfer = transfer
        self._bars = rich.progress.Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(None),
            DownloadColumn() if transfer else MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self.console,
            expand=True,
        )
        self._note = Text(no_wrap=True, overflow="ellipsis")
        self._live = Live(self._bars, console=self.console, refresh_per_second=4, transient=transient)
        self._tasks: dict[str, TaskID] = {}
        self._ended: set[str] = set()
        self._line_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def on_terminal(self) -> bool:
        """Whether bars are shown, and no lines."""
        return self.console.is_terminal and not self.console.quiet

    def update(self, text: str, done: int, total: int) -> None:
        """Move the bar of `text`, or print a line where one is due."""
        self.move(text, done, total)
        ends = done == total and text not in self._ended
        if self.line_due(ends):
            count = f"{decimal(done)} of {decimal(total)}" if self.transfer else f"{done}/{total} {self.unit}".rstrip()
            self.console.print(f"{text}: {count}", markup=False, soft_wrap=True)
        if ends:
            self._ended.add(text)

    def move(self, text: str, done: int, total: int | None, *, speed: str | None = None) -> None:
        """Move the bar of `text`, on a terminal alone. total: None where nobody knows."""
        if not self.on_terminal:
            return
        if text not in self._tasks:
            # started only now, so that nothing is shown where nothing happens, and worker processes are forked before
            self._live.start()
            self._tasks[text] = self._bars.add_task(text, total=total, completed=done, speed="")
        self._bars.update(self._tasks[text], completed=done, total=total)
        if speed is not None:
            self._bars.update(self._tasks[text], speed=speed)

    def note(self, text: str) -> None:
        """Show a line of text below the bars, on a terminal alone."""
        if not self._note.plain:
            self._live.update(Group(self._bars, self._note))
        self._note.plain = text

    def stop(self) -> None:
        """Leave the bars as they are; does nothing where none was shown."""
        self._live.stop()

    def line_due(self, now: bool) -> bool:
        """Whether it is time for a line where the output is not a terminal; now: whatever the time."""
        if self.on_terminal or not (now or time.monotonic() - self._line_at > LINE_EVERY):
            return False
        self._line_at = time.monotonic()
        return True
