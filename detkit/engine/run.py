"""What the stages of a training run share, and the files that they leave in its folder.

config.yaml  env.txt  log.jsonl  last.pt (all that a resume needs)  best.pt (all that inference needs)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from detkit.checkpoints import checkpoint
from detkit.checkpoints.training import check_stage
from detkit.config import Config, DataConfig, TrainConfig
from detkit.data.dataset import DetectionDataset
from detkit.data.loader import train_loader
from detkit.engine.callbacks import Callbacks
from detkit.engine.environment import environment
from detkit.engine.length import in_steps
from detkit.engine.log import Log, read_lines, truncate
from detkit.evaluation import best_scores
from detkit.experiment import save_config
from detkit.files import read_text, write_file
from detkit.inference.evaluate import evaluate
from detkit.inference.fast import Fast
from detkit.models import MODELS, SGD, Detector, Thresholds
from detkit.models.base import TensorSpec
from detkit.runtime import distributed
from detkit.runtime.screen import say
from detkit.structures import Images, InputSpec, Targets

Batch = tuple[Images, Targets]


@dataclass
class Run:
    """The state of a training run.

    val, test: None where the config names no such split. state: what last.pt holds of the run beside the stage's own,
    see `session.run_state`. changed: what is not as last.pt has it, in words, until env.txt has it too. resumed: the
    content of last.pt, until the stage that it belongs to has taken it. logged: lines of log.jsonl behind that, until
    the others are dropped. callbacks: hear of it. stage: the name of the one at work. before: iterations of the stages
    that are done. best: the highest mAP on val so far, None before the first. waited: evaluations of this stage since
    then. metrics: the latest evaluation on val, best_scores: what came with it.
    """

    config: Config
    folder: Path
    device: torch.device
    train: DetectionDataset
    val: DetectionDataset | None
    test: DetectionDataset | None
    state: dict[str, Any] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    resumed: dict[str, Any] | None = None
    logged: int | None = None
    callbacks: Callbacks | None = None
    stage: str = ""
    before: int = 0
    best: float | None = None
    waited: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    best_scores: Thresholds | None = None

    @property
    def recipe(self) -> TrainConfig:
        """The config's, its length in iterations."""
        return in_steps(self.config.train, len(self.train))

    @property
    def stalled(self) -> bool:
        """Whether this stage has waited for a better mAP as long as `train.patience` allows."""
        return 0 < self.config.train.patience <= self.waited

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
            say(text)

    def begin(self) -> None:
        """Write config.yaml, and add to env.txt what this run, or this part of it, runs on.

        A stage calls this once it is ready to work: a resume that fails has then changed nothing.
        """
        if not self.writes:
            return
        path = self.folder / "env.txt"
        earlier = read_text(path) + "\n" if path.exists() else ""
        changed = "".join(f"changed: {line}\n" for line in self.changed)
        write_file(path, earlier + environment(self.device, self.config.train.amp) + changed)
        save_config(self.folder / "config.yaml", self.config)
        self.changed = []
        if self.logged is not None:
            truncate(self.folder / "log.jsonl", self.logged)
            self.logged = None

    def data_of(self, store: str | None) -> DataConfig:
        """Return the config's data, with all proposals of a store of this folder where one is named."""
        data = self.config.data
        return data if store is None else replace(data, proposals=[str(self.folder / store)], proposal_count=None)

    def batches(
        self, stage: SGD, spec: InputSpec, start: int, stop: int, workers: int | None = None
    ) -> Iterable[Batch]:
        """Return this process's share of the batches of the stage's iterations start..stop-1, for a network's input.

        workers: by default those of the config.
        """
        recipe, data = self.config.train, self.data_of(stage.store)
        recipe = replace(recipe, batch=recipe.batch // stage.iterations_factor)
        if workers is not None:
            recipe = replace(recipe, workers=workers)
        rank, world = distributed.rank(), distributed.world_size()
        keys = {"rank": rank, "world": world, "masks": MODELS.get(self.config.model.name).takes_masks}
        return train_loader(self.train, spec, data, recipe, start=start, stop=stop, **keys)

    def validate(self, detector: Detector, iteration: int, log: Log) -> None:
        """Evaluate on val and keep the best as best.pt; without val, or objects in it, the latest is best.pt."""
        better = True
        if self.val is not None:
            with Fast.lent(detector):  # as `detkit evaluate` detects
                evaluation = evaluate(detector, self.val, self.config, self.device)
            self.metrics = {"iteration": iteration, "stage": self.stage, **evaluation.metrics(split="val")}
            self.best_scores = Thresholds("val", best_scores(evaluation.result, self.config.detect.score_threshold))
            value = self.metrics["mAP"]
            better = self.best is None or (value is not None and value > self.best)
            self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)
            log.evaluation(iteration, self.metrics, better and value is not None)
        if better:
            self.save_best(detector, iteration)

    def take_resumed(self) -> dict[str, Any] | None:
        """Return, once, the content of last.pt that this stage goes on from."""
        resumed, self.resumed = self.resumed, None
        if resumed is not None:
            training = resumed["training"]
            self.best, self.metrics, self.logged = training["best"], resumed["metrics"], training["run"]["log"]
            self.waited, self.best_scores = training.get("waited", 0), checkpoint.thresholds_of(resumed)
        return resumed

    def restore(
        self, detector: Detector, images: int = 0, layout: Mapping[str, TensorSpec] | None = None
    ) -> dict[str, Any]:
        """Give the detector the weights for inference in last.pt; return what the stage saved, or {}, see StageRun."""
        resumed = self.take_resumed()
        if resumed is None:
            return {}
        if layout is not None:
            check_stage(resumed["training"], images, layout, self.last)
        checkpoint.load_weights(detector, resumed["model"], self.last)
        return resumed["training"]

    def save_last(self, detector: Detector, state: dict[str, Any], iteration: int | None = None) -> None:
        """Write last.pt: `detector` is what inference uses, `state` what the stage needs to go on.

        iteration: steps of gradient descent done, by default those of the stages that are done.
        """
        if self.writes:
            iteration = self.before if iteration is None else iteration
            log = len(read_lines(self.folder / "log.jsonl"))
            own = {"stage": self.stage, "best": self.best, "waited": self.waited}
            training = {**own, "run": {**self.state, "log": log}, **state}
            self._save(self.last, detector, iteration, training)

    def save_best(self, detector: Detector, iteration: int) -> None:
        """Write best.pt."""
        if self.writes:
            self._save(self.folder / "best.pt", detector, iteration)

    def _save(self, path: Path, detector: Detector, iteration: int, training: dict[str, Any] | None = None) -> None:
        checkpoint.save(
            path,
            detector,
            self.config,
            iteration=iteration,
            metrics=self.metrics,
            best_scores=self.best_scores,
            training=training,
        )
