"""A look at training images one after the other, for stages that are no gradient descent."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from detkit.runtime import distributed
from detkit.runtime.device import images_to_device, to_device
from detkit.runtime.signals import Interrupt, Stopped
from detkit.structures import Images, Targets

if TYPE_CHECKING:
    from detkit.engine.run import Run
    from detkit.models import Detector

SAVE_EVERY = 600.0  # seconds; what a stage holds may be gigabytes
SAY_EVERY = 20.0  # seconds between two lines where the output is not a terminal


def dataset_pass(
    run: "Run",
    detector: "Detector",
    rows: Sequence[int],
    text: str,
    done: int,
    save: Callable[[int], None],
) -> Iterator[tuple[Images, Targets]]:
    """Yield the training images `rows`, but for the first `done`, in batches of `evaluate.batch` on the run's device.

    The detector goes there, too, into evaluation mode. save: called with the number of images done, now and then, and
    after SIGTERM or Ctrl-C, before Stopped is raised. Under torchrun every process sees all images: what a stage makes
    of them is one state, which no process could make from a share.
    """
    from detkit.data.loader import dataset_pass_loader

    to_device(detector, run.device, run.config.train.channels_last)
    detector.eval()
    recipe = run.config.train
    batches = dataset_pass_loader(
        run.train, detector.input, run.config.data, rows[done:], batch=run.config.evaluate.batch
    )
    console = Console(quiet=not run.writes, highlight=False)
    columns = ("{task.description}", BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    saved = said = time.monotonic()
    with (
        Interrupt() as interrupt,
        Progress(*columns, console=console, expand=True, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task(text, total=len(rows), completed=done)
        for images, targets in batches:
            yield images_to_device(images, run.device, recipe.channels_last), targets.to(run.device)
            done += len(images)
            bar.update(task, completed=done)
            now = time.monotonic()
            if not console.is_terminal and (now - said > SAY_EVERY or done == len(rows)):
                said = now
                console.print(f"{text}: {done}/{len(rows)} images")
            signal = distributed.all_reduce_max(interrupt.received)
            if signal or now - saved > SAVE_EVERY:
                save(done)
                saved = now
            if signal:
                raise Stopped(signal, f"image {done} of {len(rows)} ({text})", run.folder)
