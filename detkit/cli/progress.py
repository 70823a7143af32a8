"""The progress bar of commands that go through files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress(transfer: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (text, done, total) that shows a bar on stderr for each text; transfer: counts are bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    counts = (DownloadColumn(),) if transfer else (MofNCompleteColumn(),)
    bar = Progress("{task.description}", BarColumn(), *counts, TimeRemainingColumn(), console=Console(stderr=True))
    tasks: dict[str, Any] = {}

    def update(text: str, done: int, total: int) -> None:
        if text not in tasks:
            bar.start()  # only now, so that where nothing happens nothing is shown
            tasks[text] = bar.add_task(text, total=total)
        bar.update(tasks[text], completed=done)

    try:
        yield update
    finally:
        if tasks:
            bar.stop()
