"""A run that has ended, by what is in its folder."""

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detkit.engine.log import read_log
from detkit.files import read_text
from detkit.names import shown
from detkit.viz import loss_image
from detkit.viz.shown import Shown


@dataclass(frozen=True, repr=False)
class TrainedRun(Shown):
    """What `detkit.train` returns; in a notebook, its curves. folder: with the run's report, plots and samples."""

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

    def plot(self) -> np.ndarray:
        """Return the curves as a picture, (H, W, 3) RGB uint8: losses, mAP on val, learning rate."""
        return loss_image(self.log)

    def __repr__(self) -> str:
        return f"<TrainedRun {self._title()}>"

    def _repr_html_(self) -> str:
        """The mAP, the curves, and where the rest is, for a notebook."""
        return f"<div><p>{html.escape(self._title())}</p>{self._picture('.png')}</div>"

    def _title(self) -> str:
        mAP = self.metrics.get("mAP")
        return shown(f"{self.folder}: {'not tested' if mAP is None else f'mAP {mAP:.4f}'}")
