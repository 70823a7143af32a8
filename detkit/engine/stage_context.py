"""A run as a detector's stages see it: with the engine's ways to train, read and propose."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from detkit.data.batch import make_targets
from detkit.data.loader import dataset_pass_loader, open_proposals
from detkit.engine import train
from detkit.engine.log import Log
from detkit.engine.run import Batch, Run
from detkit.inference.propose import make_rpn_store
from detkit.models import SGD, Detector
from detkit.runtime import distributed
from detkit.runtime.device import autocast, images_to_device, to_device
from detkit.runtime.progress import Progress
from detkit.runtime.signals import Interrupt, Stopped
from detkit.structures import Images, Proposals, Targets

SAVE_EVERY = 600.0  # seconds; what a stage holds may be gigabytes

Results = tuple[Tensor, ...]
Extract = Callable[[Images, Targets], Results]


class StageContext(Run):
    """Is a StageRun, whose docstrings say what each method does; the other half of them is in Run."""

    def train_count(self) -> int:
        return len(self.train)

    def conclude(self, detector: Detector) -> None:
        """It becomes best.pt whatever earlier stages reached: those only lead to it."""
        self.best = None
        with Log(self.folder, self.before, self.before, writes=self.writes, callbacks=self.callbacks) as log:
            self.validate(detector, self.before, log)
        self.save_last(detector, {"finished": True})

    def fit(self, detector: Detector, stage: SGD) -> None:
        train.fit(detector, self, stage)

    def dataset_pass(
        self,
        detector: Detector,
        extract: Extract,
        indices: Sequence[int],
        text: str,
        *,
        done: int = 0,
        save: Callable[[int], None],
    ) -> Iterator[Results]:
        """Batches are of `evaluate.batch` images. The detector goes to the device, too, into evaluation mode.

        save: called every SAVE_EVERY seconds, and after SIGTERM or Ctrl-C, before Stopped is raised.
        """
        count, batch, workers = len(indices), self.config.evaluate.batch, self.config.train.workers
        to_device(detector, self.device, self.config.train.channels_last)
        detector.eval()
        rank, world = distributed.rank(), distributed.world_size()
        data = self.config.data, indices[done:]
        loader = dataset_pass_loader(
            self.train, detector.input, *data, batch=batch, workers=workers, rank=rank, world=world
        )
        batches, rounds = iter(loader), -(-(count - done) // (batch * world))
        saved = time.monotonic()
        with Interrupt() as interrupt, self._progress() as bars:
            bars.move(text, done, count)
            for _ in range(rounds):
                for images, results in self._extract(extract, next(batches, None)):
                    yield results
                    done += images
                    bars.update(text, done, count)
                    signal = distributed.all_reduce_max(interrupt.received)
                    if signal or time.monotonic() - saved > SAVE_EVERY:
                        save(done)
                        saved = time.monotonic()
                    if signal:
                        raise Stopped(signal, f"image {done} of {count} ({text})", self.folder)

    def _extract(self, extract: Extract, batch: Batch | None) -> Iterator[tuple[int, Results]]:
        """Yield how many images each process's batch has, and what is extracted of them, by rank; None: no batch."""
        number, results = 0, ()
        if batch is not None:
            images = images_to_device(batch[0], self.device, self.config.train.channels_last)
            with torch.no_grad(), autocast(self.device, self.config.train.amp):
                number, results = len(images), extract(images, batch[1].to(self.device))
        if distributed.world_size() == 1:
            yield number, results
            return
        for count, parts in distributed.gather((number, tuple(part.cpu() for part in results))):
            if count:
                yield count, tuple(part.to(self.device) for part in parts)

    def on_main(self, make: Callable[[], Any]) -> Any:
        return distributed.on_main(make)

    def regions(self, store: str | None = None, images: int = 64) -> Iterator[tuple[Targets, Proposals]]:
        """images: so many at once."""
        stored = open_proposals(self.train, self.data_of(store))
        assert stored is not None, "check_proposals comes first"
        for first in range(0, len(self.train), images):
            indices = range(first, min(first + images, len(self.train)))
            annotations = [self.train.record(index).annotations for index in indices]
            yield (
                make_targets(annotations, self.config.data.difficult),
                Proposals.pad([torch.from_numpy(stored.boxes(index).copy()) for index in indices]),
            )

    def propose(self, detector: Detector, store: str) -> None:
        # the first process makes the store, the others find it made
        with distributed.main_first(), self._progress() as bars:
            show = partial(bars.update, "proposals")
            make_rpn_store(self.folder / store, self.train, detector, self.config, self.last, show)

    def _progress(self) -> Progress:
        return Progress(Console(quiet=not self.writes, highlight=False), unit="images")
