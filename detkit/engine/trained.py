"""A run that has ended, by what is in its folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detkit.engine.log import read_log
from detkit.files import read_text


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """What `detkit.train` returns. folder: with the run's report, plots and samples."""

    folder: Path

    @property
    def best(self) -> Path:
        """The checkpoint that was best on val, or the last where there is no val: for `detkit.load`."""
        return self.folder / "best.pt"

    @property
    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds of the test split: mAP, AP of each class, protocol; {} where there was no test."""
        path = self.folder / "metrics.json"
        return json.loads(read_text(path)) if path.exists() else {}

    @property
    def log(self) -> list[dict[str, Any]]:
        """The records of log.jsonl: losses and learning rate by iteration, and evaluations on val."""
        return read_log(self.folder / "log.jsonl")

    def __repr__(self) -> str:
        mAP = self.metrics.get("mAP")
        return f"<TrainedRun {self.folder}: {'not tested' if mAP is None else f'mAP {mAP:.4f}'}>"
