"""What hears of a training run while it goes on: callbacks of a user's own, loggers, the page of live curves."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkit.config import Config
from detkit.engine.trained import TrainedRun
from detkit.errors import Incomplete, in_a_line
from detkit.runtime.screen import complain


@dataclass(frozen=True)
class Beginning:
    """A run that begins, or goes on.

    folder: of the run. config: the whole of it. start: steps done before, 0 in a new run. iterations: steps of
    gradient descent in all.
    """

    folder: Path
    config: Config
    start: int
    iterations: int


class Callback:
    """Hears of a run. Inherit, and say what is to happen; `detkit.train(..., callbacks=[...])` takes it.

    Calls are made by the process that writes, between steps, with plain numbers that were read anyway: none of them
    makes the training wait for a GPU. What a callback raises is said in one line, and it hears no more; the run goes
    on, and ends with `Incomplete`. To end a run in `on_step` with all saved, as Ctrl-C does:
    `signal.raise_signal(signal.SIGINT)`.
    """

    def on_begin(self, run: Beginning) -> None:
        """Before the first step of a new run, or of the rest of one."""

    def on_step(self, iteration: int, values: Mapping[str, float]) -> None:
        """After each 20 steps, and the last one. iteration: steps done.

        values: means over the steps since the last call: `loss`, its parts by name, images_per_second, data_share (of
        the time, spent waiting for images); and `lr`.
        """

    def on_evaluation(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """After an evaluation on the val split. metrics: as in metrics.json: mAP, AP of each class, protocol."""

    def on_end(self, run: TrainedRun, error: BaseException | None) -> None:
        """At the end, once the test is done; error: what ended the run before that, such as Stopped after Ctrl-C."""


class Callbacks:
    """Calls several, each for as long as it raises nothing."""

    def __init__(self, callbacks: Sequence[Callback], folder: Path, config: Config, iterations: int) -> None:
        self._callbacks = list(callbacks)
        self._folder, self._config, self._iterations = folder, config, iterations
        self._begun = False
        self._failed: list[str] = []

    def begin(self, start: int) -> None:
        """The first step, or the first of the rest, follows; later stages call it in vain."""
        if not self._begun:
            self._begun = True
            beginning = Beginning(self._folder, self._config, start, self._iterations)
            self._each("on_begin", lambda one: one.on_begin(beginning))

    def step(self, iteration: int, values: Mapping[str, float]) -> None:
        self._each("on_step", lambda one: one.on_step(iteration, values))

    def evaluation(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        self._each("on_evaluation", lambda one: one.on_evaluation(iteration, metrics))

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Enter it for the whole of the run. Raises Incomplete where one has failed, and nothing else."""
        try:
            yield
        except BaseException as error:
            self._end(None if isinstance(error, Incomplete) else error)
            raise
        self._end(None)
        if self._failed:
            raise Incomplete(f"{'; '.join(self._failed)}; the run itself is complete in {self._folder}")

    def _end(self, error: BaseException | None) -> None:
        if not self._begun and error is not None:  # refused, with nothing changed
            return
        self.begin(self._iterations)  # of a finished run only the test is done again
        self._each("on_end", lambda one: one.on_end(TrainedRun(self._folder), error))

    def _each(self, event: str, call: Callable[[Callback], None]) -> None:
        for one in list(self._callbacks):
            try:
                call(one)
            except Exception as error:
                self._callbacks.remove(one)
                self._failed.append(f"callback {type(one).__name__}: {event}: {in_a_line(error)}")
                complain(f"{self._failed[-1]}; it hears no more", "warning")
