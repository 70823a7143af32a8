"""A run as a detector's stages see it: with the engine's ways to train, read and propose."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from rich.console import Console

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
from detkit.structures import Proposals, Targets

SAVE_EVERY = 600.0  # seconds; what a stage holds may be gigabytes


class StageContext(Run):
    """Is a StageRun, whose docstrings say what each method does; the other half of them is in Run."""

    def train_count(self) -> int:
        return len(self.train)

    def conclude(self, detector: Detector) -> None:
        """It becomes best.pt whatever earlier stages reached: those only lead to it."""
        self.best = None
        with Log(self.folder, self.before, self.before, writes=self.writes) as log:
            self.validate(detector, self.before, log)
        self.save_last(detector, {"finished": True})

    def fit(self, detector: Detector, stage: SGD) -> None:
        train.fit(detector, self, stage)

    def dataset_pass(
        self, detector: Detector, indices: Sequence[int], text: str, *, done: int = 0, save: Callable[[int], None]
    ) -> Iterator[Batch]:
        """Batches are of `evaluate.batch` images. The detector goes to the device, too, into evaluation mode.

        save: called every SAVE_EVERY seconds, and after SIGTERM or Ctrl-C, before Stopped is raised. Under torchrun
        every process sees all images: what a stage makes of them is one state, which none could make from a share.
        """
        count, channels_last = len(indices), self.config.train.channels_last
        to_device(detector, self.device, channels_last)
        detector.eval()
        batch = self.config.evaluate.batch
        batches = dataset_pass_loader(self.train, detector.input, self.config.data, indices[done:], batch=batch)
        saved = time.monotonic()
        with Interrupt() as interrupt, self._progress() as bars:
            bars.move(text, done, count)
            for images, targets in batches:
                yield images_to_device(images, self.device, channels_last), targets.to(self.device)
                done += len(images)
                bars.update(text, done, count)
                signal = distributed.all_reduce_max(interrupt.received)
                if signal or time.monotonic() - saved > SAVE_EVERY:
                    save(done)
                    saved = time.monotonic()
                if signal:
                    raise Stopped(signal, f"image {done} of {count} ({text})", self.folder)

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

    @contextmanager
    def inference(self) -> Iterator[None]:
        with torch.no_grad(), autocast(self.device, self.config.train.amp):
            yield

    def _progress(self) -> Progress:
        return Progress(Console(quiet=not self.writes, highlight=False), unit="images")
