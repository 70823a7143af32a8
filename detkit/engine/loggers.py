"""Loggers: callbacks that hand the curves of a run to TensorBoard, Weights & Biases or MLflow.

`train.loggers` names them. Each writes the same: train/loss and the other values of a step, val/mAP, val/AP/CLASS,
test/mAP. A resumed run goes on with its curves, which `loggers.json` in the run's folder finds again.
"""

import json
import math
import os
import re
import time
from abc import abstractmethod
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from detkit.engine.callbacks import Beginning, Callback
from detkit.engine.trained import TrainedRun
from detkit.errors import UserError
from detkit.experiment import to_plain
from detkit.files import read_text, write_atomic


class Logger(Callback):
    """Turns what it hears into named numbers."""

    package: str  # that it needs
    module: str  # that has its functions
    iteration = 0  # of the latest evaluation or step

    def __init__(self) -> None:
        """Raise UserError where the package is not installed."""
        try:
            self.library = import_module(self.module)
        except ImportError as error:
            raise UserError(f"train.loggers: {self.package}: {error}; pip install {self.package}") from None

    def on_step(self, iteration: int, values: Mapping[str, float]) -> None:
        self.iteration = iteration
        self.write(iteration, _finite({f"train/{name}": value for name, value in values.items()}))

    def on_evaluation(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        self.iteration = iteration
        self.write(iteration, _scores("val", metrics))

    def on_end(self, run: TrainedRun, error: BaseException | None) -> None:
        if error is None and run.metrics:
            self.write(self.iteration, _scores("test", run.metrics))
        self.close(error)

    @abstractmethod
    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        """Write numbers, by name."""

    @abstractmethod
    def close(self, error: BaseException | None) -> None:
        """Write what is left; error: what ended the run too early."""


class TensorBoard(Logger):
    """Writes to the folder `tensorboard` of the run: `tensorboard --logdir runs` shows all of them."""

    package, module = "tensorboard", "torch.utils.tensorboard"

    def on_begin(self, run: Beginning) -> None:
        # hides what a killed run wrote after the step that this one goes on from
        purge = run.start + 1 if run.start else None
        self._writer = self.library.SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self, error: BaseException | None) -> None:
        self._writer.close()


class WandB(Logger):
    """Writes to Weights & Biases, by its own environment variables: WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE=offline."""

    package = module = "wandb"

    def on_begin(self, run: Beginning) -> None:
        known = _known(run.folder).get("wandb")
        self._run = self.library.init(
            id=known,
            resume="allow" if known else None,
            dir=str(run.folder),
            name=None if known else run.folder.name,
            config=to_plain(run.config),
            reinit="create_new",  # runs of the user's own stay as they are
        )
        _remember(run.folder, wandb=self._run.id)
        # not its own steps, which only grow: a resumed run may repeat some
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "iteration": iteration})

    def close(self, error: BaseException | None) -> None:
        self._run.finish(exit_code=int(error is not None))


class MLflow(Logger):
    """Writes to MLflow, by its own environment variables: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

    package = module = "mlflow"

    def on_begin(self, run: Beginning) -> None:
        self._client = self.library.MlflowClient()
        known = _known(run.folder).get("mlflow")
        if known:
            self._run = known
            self._client.update_run(known, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "detkit")
        experiment = self._client.get_experiment_by_name(name)
        identity = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self._run = self._client.create_run(identity, run_name=run.folder.name).info.run_id
        _remember(run.folder, mlflow=self._run)
        for name, value in _flat(to_plain(run.config)).items():
            self._client.log_param(self._run, name, value)

    def write(self, iteration: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        # what it lets stand in a name
        names = {re.sub(r"[^\w./ :-]", "_", name): value for name, value in values.items()}
        metrics = [self.library.entities.Metric(name, value, now, iteration) for name, value in names.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, error: BaseException | None) -> None:
        self._client.set_terminated(self._run, "FINISHED" if error is None else "KILLED")


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def _scores(split: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    by_class = {f"{split}/AP/{name}": value for name, value in metrics["AP"].items()}
    return _finite({f"{split}/mAP": metrics["mAP"], **by_class})


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def _flat(values: Mapping[str, Any], parent: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    found = {}
    for name, value in values.items():
        found |= _flat(value, f"{parent}{name}.") if isinstance(value, Mapping) else {f"{parent}{name}": value}
    return found


def _known(folder: Path) -> dict[str, str]:
    """What the loggers called this run when it began."""
    path = folder / "loggers.json"
    return json.loads(read_text(path)) if path.exists() else {}


def _remember(folder: Path, **ids: str) -> None:
    write_atomic(folder / "loggers.json", json.dumps(_known(folder) | ids) + "\n")
