"""What the stages of a training run share, and the files that they leave in its folder.

config.yaml  env.txt  log.jsonl  last.pt (all that a resume needs)  best.pt (all that inference needs)
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from detkit.checkpoints import checkpoint
from detkit.config import Config
from detkit.data.dataset import DetectionDataset
from detkit.engine.environment import environment
from detkit.experiment import save_config
from detkit.files import write_file
from detkit.models import Detector
from detkit.runtime import distributed


@dataclass
class Run:
    """The state of a training run.

    val, test: None where the config names no such split. resumed: the content of last.pt, until the stage that it
    belongs to has taken it. stage: the name of the one at work. before: iterations of the stages that are done. best:
    the highest mAP on val so far, None before the first. metrics: the latest evaluation on val.
    """

    config: Config
    folder: Path
    device: torch.device
    train: DetectionDataset
    val: DetectionDataset | None
    test: DetectionDataset | None
    resumed: dict[str, Any] | None = None
    stage: str = ""
    before: int = 0
    best: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.folder / "last.pt"

    @property
    def writes(self) -> bool:
        """Whether this process writes the run's files."""
        return distributed.rank() == 0

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.writes:
            print(text, flush=True)

    def begin(self) -> None:
        """Write config.yaml, and add to env.txt what this run, or this part of it, runs on.

        A stage calls this once it is ready to work: a resume that fails has then changed nothing.
        """
        if not self.writes:
            return
        save_config(self.folder / "config.yaml", self.config)
        path = self.folder / "env.txt"
        earlier = path.read_text() + "\n" if path.exists() else ""
        write_file(path, earlier + environment(self.device, self.config.train.amp))

    def take_resumed(self) -> dict[str, Any] | None:
        """Return, once, the content of last.pt that this stage goes on from."""
        resumed, self.resumed = self.resumed, None
        if resumed is not None:
            self.best, self.metrics = resumed["training"]["best"], resumed["metrics"]
        return resumed

    def restore(self, detector: Detector) -> dict[str, Any]:
        """Give the detector the weights for inference in last.pt; return what the stage saved, or {}."""
        resumed = self.take_resumed()
        if resumed is None:
            return {}
        checkpoint.load_weights(detector, resumed["model"], self.last)
        return resumed["training"]

    def save_last(self, detector: Detector, state: dict[str, Any], iteration: int | None = None) -> None:
        """Write last.pt: `detector` is what inference uses, `state` what the stage needs to go on.

        iteration: steps of gradient descent done, by default those of the stages that are done.
        """
        if self.writes:
            iteration = self.before if iteration is None else iteration
            training = {"stage": self.stage, "best": self.best, **state}
            checkpoint.save(
                self.last, detector, self.config, iteration=iteration, metrics=self.metrics, training=training
            )

    def save_best(self, detector: Detector, iteration: int) -> None:
        """Write best.pt."""
        if self.writes:
            checkpoint.save(self.folder / "best.pt", detector, self.config, iteration=iteration, metrics=self.metrics)
