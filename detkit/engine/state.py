"""What gradient descent carries from one step to the next."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from detkit.checkpoints import checkpoint
from detkit.engine.ema import ModelEMA
from detkit.engine.meter import Meter
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

    def restore(self, content: dict[str, Any], source: str | Path) -> int:
        """Take up a checkpoint's content (as `checkpoint.load` reads it from `source`); return its steps done.

        Weights and moments come from the checkpoint, the groups' options (weight decay, ...) from the config.
        """
        training = content["training"]
        checkpoint.load_weights(self.detector, training["weights"], source)
        if self.average is not None:
            checkpoint.load_weights(self.average.detector, content["model"], source)
        saved, current = training["optimizer"], self.optimizer.state_dict()
        same_kind = content["config"]["train"]["optimizer"] == type(self.optimizer).__name__.lower()
        if not same_kind or _group_sizes(saved) != _group_sizes(current):
            raise UserError(f"{source}: saved by another optimiser; keep train.optimizer and the factors on the rate")
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": current["param_groups"]})
        self.scaler.load_state_dict(training["scaler"])
        self.meter.steps = training["losses"]
        return training["iteration"]


def _group_sizes(optimizer_state: dict[str, Any]) -> list[int]:
    """Return the number of parameters in each group of an optimiser's state dict."""
    return [len(group["params"]) for group in optimizer_state["param_groups"]]
