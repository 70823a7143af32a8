"""A run as a detector's stages see it: with the engine's ways to train, read and propose."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from rich.console import Console

from detkit.engine import batches, train, validation
from detkit.engine.run import Run
from detkit.inference.propose import make_rpn_store
from detkit.models import SGD, Detector
from detkit.runtime import distributed
from detkit.runtime.device import autocast
from detkit.runtime.progress import Progress
from detkit.structures import Images, Proposals, Targets


class StageContext(Run):
    """Is a StageRun, whose docstrings say what each method does; the other half of them is in Run."""

    def train_count(self) -> int:
        return len(self.train)

    def conclude(self, detector: Detector) -> None:
        validation.conclude(detector, self)

    def fit(self, detector: Detector, stage: SGD) -> None:
        train.fit(detector, self, stage)

    def dataset_pass(
        self, detector: Detector, indices: Sequence[int], text: str, *, done: int = 0, save: Callable[[int], None]
    ) -> Iterator[tuple[Images, Targets]]:
        return batches.dataset_pass(self, detector, indices, text, done=done, save=save)

    def regions(self) -> Iterator[tuple[Targets, Proposals]]:
        return batches.regions(self)

    def propose(self, detector: Detector, store: str) -> None:
        with (
            distributed.main_first(),  # the first process makes the store, the others find it made
            Progress(Console(quiet=not self.writes, highlight=False), unit="images") as bars,
        ):
            show = partial(bars.update, "proposals")
            make_rpn_store(self.folder / store, self.train, detector, self.config, self.last, show)

    @contextmanager
    def inference(self) -> Iterator[None]:
        with torch.no_grad(), autocast(self.device, self.config.train.amp):
            yield
