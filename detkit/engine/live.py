"""live.html in a run's folder, kept up to date."""

import time
from collections.abc import Mapping
from datetime import datetime
from html import escape
from typing import Any

from detkit.engine.callbacks import Beginning, Callback
from detkit.engine.log import read_log
from detkit.engine.trained import TrainedRun
from detkit.files import write_atomic
from detkit.report.live import live_page

EVERY = 5.0  # seconds between two pages at least, but for evaluations and the end


class LivePage(Callback):
    """Writes the page after evaluations, and else at most every few seconds."""

    def on_begin(self, run: Beginning) -> None:
        self._run = run
        self._begun, self._written, self._done = time.monotonic(), -EVERY, run.start
        self._records = read_log(run.folder / "log.jsonl")
        self._write()

    def on_step(self, iteration: int, values: Mapping[str, float]) -> None:
        self._records.append({"iteration": iteration, **values})
        self._done = iteration
        if time.monotonic() - self._written > EVERY:
            self._write()

    def on_evaluation(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        self._records.append({"iteration": iteration, "mAP": metrics["mAP"]})
        self._write()

    def on_end(self, run: TrainedRun, error: BaseException | None) -> None:
        mAP = run.metrics.get("mAP") if error is None else None
        report = '<a href="report.html">report.html</a>'
        state = "Ended." if mAP is None else f"Ended: mAP {mAP:.4f} on the test split, see {report}."
        if error is not None:
            state = f"Ended early: {escape(str(error) or type(error).__name__)}"
        self._write(state, ended=True)

    def _write(self, state: str = "", ended: bool = False) -> None:
        run, done, left = self._run, self._done, None
        if run.start < done < run.iterations and not ended:
            left = (time.monotonic() - self._begun) / (done - run.start) * (run.iterations - done)
        state = state or f"As of {datetime.now():%H:%M:%S}; the page renews itself."
        val = run.config.data.val != []  # null: what the root holds
        page = live_page(run.folder.name, self._records, run.iterations, left=left, state=state, ended=ended, val=val)
        write_atomic(run.folder / "live.html", page)
        self._written = time.monotonic()
