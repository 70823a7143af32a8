"""What gradient descent carries from one step to the next."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from detkit.checkpoints import checkpoint
from detkit.checkpoints.content import check_tensors, is_count, refuse
from detkit.checkpoints.training import check_losses, check_optimizer, check_scaler
from detkit.engine.ema import ModelEMA
from detkit.engine.meter import LOG_EVERY, Meter
from detkit.errors import UserError
from detkit.models import Detector


@dataclass
class State:
    """All that a checkpoint must hold for an exact resume.

    Nothing else has state: batches, learning rate and random numbers are functions of the iteration.
    """

    detector: Detector
    optimizer: Optimizer
    scaler: GradScaler
    average: ModelEMA[Detector] | None
    meter: Meter

    @property
    def averaged(self) -> Detector:
        """What is evaluated and used for inference: the average where there is one."""
        return self.detector if self.average is None else self.average.detector

    def dump(self, iteration: int) -> dict[str, Any]:
        """Return plain tensors and data; `iteration` steps are done. Tensors are shared, not copied."""
        return {
            "iteration": iteration,
            "weights": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "losses": self.meter.steps,
        }

    def restore(self, content: dict[str, Any], source: str | Path, iterations: int) -> int:
        """Take up a checkpoint's content (as `checkpoint.load` reads it from `source`); return its steps done.

        iterations: of the stage. UserError for whatever cannot be gone on from.
        Weights and moments come from the checkpoint, the groups' options (weight decay, ...) from the config.
        """
        training = content["training"]
        missing = [key for key in ("iteration", "weights", "optimizer", "scaler", "losses") if key not in training]
        if missing:
            raise UserError(f"{source}: damaged checkpoint, no training.{' and no training.'.join(missing)} in it")
        iteration, weights = training["iteration"], training["weights"]
        if not is_count(iteration) or iteration > iterations:
            refuse(source, "training.iteration", f"a number of steps up to {iterations}, where this stage ends")
        if content["config"]["train"].get("optimizer") != type(self.optimizer).__name__.lower():
            raise UserError(f"{source}: saved by another optimiser; keep train.optimizer and the factors on the rate")
        check_tensors(weights, source, "training.weights")
        checkpoint.load_weights(self.averaged, content["model"], source)
        checkpoint.load_weights(self.detector, weights, source)
        check_optimizer(training["optimizer"], self.optimizer, source)
        check_scaler(training["scaler"], self.scaler, source)
        check_losses(training["losses"], min(iteration, LOG_EVERY), source)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": training["optimizer"]["state"], "param_groups": groups})
        self.scaler.load_state_dict(training["scaler"])
        self.meter.steps = training["losses"]
        return iteration
