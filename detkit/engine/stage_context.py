"""A run as a detector's stages see it: with the engine's ways to train, read and propose."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from detkit.config import Config
from detkit.engine import batches, train, validation
from detkit.engine.run import Run
from detkit.inference.propose import make_rpn_store
from detkit.models import SGD, Detector, StageRun
from detkit.runtime import distributed
from detkit.runtime.device import autocast
from detkit.runtime.progress import Progress
from detkit.structures import Images, Proposals, Targets


@dataclass(frozen=True)
class StageContext(StageRun):
    """Implements StageRun, whose docstrings say what each method does."""

    run: Run

    @property
    def config(self) -> Config:
        return self.run.config

    @property
    def device(self) -> torch.device:
        return self.run.device

    def train_count(self) -> int:
        return len(self.run.train)

    def begin(self) -> None:
        self.run.begin()

    def restore(self, detector: Detector) -> dict[str, Any]:
        return self.run.restore(detector)

    def save_last(self, detector: Detector, state: dict[str, Any]) -> None:
        self.run.save_last(detector, state)

    def conclude(self, detector: Detector) -> None:
        validation.conclude(detector, self.run)

    def fit(self, detector: Detector, stage: SGD) -> None:
        train.fit(detector, self.run, stage)

    def dataset_pass(
        self, detector: Detector, indices: Sequence[int], text: str, *, done: int = 0, save: Callable[[int], None]
    ) -> Iterator[tuple[Images, Targets]]:
        return batches.dataset_pass(self.run, detector, indices, text, done=done, save=save)

    def regions(self) -> Iterator[tuple[Targets, Proposals]]:
        return batches.regions(self.run)

    def propose(self, detector: Detector, store: str) -> None:
        run = self.run
        with (
            distributed.main_first(),  # the first process makes the store, the others find it made
            Progress(Console(quiet=not run.writes, highlight=False), unit="images") as bars,
        ):

            def show(done: int, total: int) -> None:
                bars.update("proposals", done, total)

            make_rpn_store(run.folder / store, run.train, detector, run.config, run.last, show)

    @contextmanager
    def inference(self) -> Iterator[None]:
        with torch.no_grad(), autocast(self.device, self.config.train.amp):
            yield

    def say(self, text: str) -> None:
        self.run.say(text)
