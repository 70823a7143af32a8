"""The training data of a run, as its stages read it."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from rich.console import Console

from detkit.data.batch import make_targets
from detkit.data.loader import dataset_pass_loader, open_proposals, train_loader
from detkit.engine.run import Run
from detkit.models import SGD, Detector
from detkit.runtime import distributed
from detkit.runtime.device import images_to_device, to_device
from detkit.runtime.progress import Progress
from detkit.runtime.signals import Interrupt, Stopped
from detkit.structures import Images, InputSpec, Proposals, Targets

SAVE_EVERY = 600.0  # seconds; what a stage holds may be gigabytes

Batch = tuple[Images, Targets]


def train_batches(
    run: Run, stage: SGD, spec: InputSpec, start: int, stop: int, workers: int | None = None
) -> Iterable[Batch]:
    """Return this process's share of the batches of the stage's iterations start..stop-1, for a network's input.

    workers: by default those of the config.
    """
    recipe, data = run.config.train, run.config.data
    if workers is not None:
        recipe = replace(recipe, workers=workers)
    if stage.store is not None:
        data = replace(data, proposals=[str(run.folder / stage.store)], proposal_count=0)
    rank, world = distributed.rank(), distributed.world_size()
    return train_loader(run.train, spec, data, recipe, start=start, stop=stop, rank=rank, world=world)


def dataset_pass(
    run: Run, detector: Detector, indices: Sequence[int], text: str, *, done: int = 0, save: Callable[[int], None]
) -> Iterator[Batch]:
    """Yield training images, unaugmented, in batches of `evaluate.batch` on the run's device.

    indices: of the images; the first `done` of them are passed over. The detector goes to the device, too, into
    evaluation mode. text: what the progress is called. save: called with the number of images done every SAVE_EVERY
    seconds, and after SIGTERM or Ctrl-C, before Stopped is raised. Under torchrun every process sees all images: what a
    stage makes of them is one state, which no process could make from a share.
    """
    count, channels_last = len(indices), run.config.train.channels_last
    to_device(detector, run.device, channels_last)
    detector.eval()
    batch = run.config.evaluate.batch
    batches = dataset_pass_loader(run.train, detector.input, run.config.data, indices[done:], batch=batch)
    saved = time.monotonic()
    with (
        Interrupt() as interrupt,
        Progress(Console(quiet=not run.writes, highlight=False), unit="images") as bars,
    ):
        bars.move(text, done, count)
        for images, targets in batches:
            yield images_to_device(images, run.device, channels_last), targets.to(run.device)
            done += len(images)
            bars.update(text, done, count)
            signal = distributed.all_reduce_max(interrupt.received)
            if signal or time.monotonic() - saved > SAVE_EVERY:
                save(done)
                saved = time.monotonic()
            if signal:
                raise Stopped(signal, f"image {done} of {count} ({text})", run.folder)


def regions(run: Run, images: int = 64) -> Iterator[tuple[Targets, Proposals]]:
    """Yield the objects and stored proposals of the training images, in their pixels, so many images at once."""
    stored = open_proposals(run.train, run.config.data)
    assert stored is not None, "check_proposals comes first"
    for first in range(0, len(run.train), images):
        indices = range(first, min(first + images, len(run.train)))
        annotations = [run.train.record(index).annotations for index in indices]
        yield (
            make_targets(annotations, run.config.data.difficult),
            Proposals.pad([torch.from_numpy(stored.boxes(index).copy()) for index in indices]),
        )
