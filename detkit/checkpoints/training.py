"""What last.pt must hold beside the weights, so that training goes on from it: each fault is one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, Optimizer

from detkit.checkpoints.content import is_count, is_number, is_plain_tensor, refuse
from detkit.errors import UserError
from detkit.models.base import TensorSpec
from detkit.verified import nonfinite

KEY = "training"


def check_training(content: dict[str, Any], path: str | Path) -> None:
    """Raise UserError unless a checkpoint's content, which `checkpoint.load` read from `path`, has a state of training.

    That of gradient descent is looked at further by the functions below, that of another stage by the stage.
    """
    training = content.get(KEY)
    if training is None:
        raise UserError(f"{path}: has no state of training, as the best.pt of a run; a run goes on from its last.pt")
    if not isinstance(training, dict) or not isinstance(training.get("stage"), str):
        refuse(path, f"{KEY}.stage", "the name of a stage")
    best = training.get("best", "")
    if best is not None and not is_number(best):
        refuse(path, f"{KEY}.best", "a number, or None")
    if not isinstance(training.get("finished", False), bool):
        refuse(path, f"{KEY}.finished", "True or False")
    if not is_count(training.get("iteration", 0)):
        refuse(path, f"{KEY}.iteration", "a number of steps")
    if not is_count(training.get("waited", 0)):
        refuse(path, f"{KEY}.waited", "a number of evaluations")
    run = training.get("run")
    if not isinstance(run, dict) or not is_count(run.get("processes")) or not is_count(run.get("log")):
        refuse(path, f"{KEY}.run", "what a run keeps: its data, processes and lines of log.jsonl")
    data = run.get("data")
    if not isinstance(data, dict) or not all(isinstance(data.get(split, 0), dict | None) for split in ("train", "val")):
        refuse(path, f"{KEY}.run.data", "the fingerprints of train and val")
    _check_values(training, path, KEY)


def check_stage(training: dict[str, Any], images: int, layout: Mapping[str, TensorSpec], path: str | Path) -> None:
    """Raise UserError unless a stage that is no gradient descent can go on from what it saved, see StageRun.restore."""
    done = training.get("done", 0)
    if not is_count(done) or done > images:
        refuse(path, f"{KEY}.done", f"a number of images up to {images}")
    if not done and not layout.keys() & training.keys():
        return
    lengths: dict[str, int] = {}
    for name, spec in layout.items():
        value = training.get(name)
        if not isinstance(value, Tensor) or not _fits(value, spec, lengths):
            kind, sides = str(spec.dtype).removeprefix("torch."), ", ".join(map(str, spec.shape))
            refuse(path, f"{KEY}.{name}", f"{kind} numbers of shape ({sides}) from {spec.low:g} to {spec.high:g}")


def _fits(value: Tensor, spec: TensorSpec, lengths: dict[str, int]) -> bool:
    """Whether a tensor is as `spec` says; lengths: those with a name, which the first tensor that has it tells."""
    if value.dtype != spec.dtype or value.ndim != len(spec.shape):
        return False
    for length, number in zip(spec.shape, value.shape):
        if number != (lengths.setdefault(length, number) if isinstance(length, str) else length):
            return False
    return value.numel() == 0 or (float(value.min()) >= spec.low and float(value.max()) <= spec.high)


def check_losses(losses: Any, most: int, path: str | Path) -> None:
    """Raise UserError unless these are the loss parts of each of at most so many steps."""
    rows: list[Any] = losses if isinstance(losses, list) and len(losses) <= most else [None]
    if not all(isinstance(row, list) and len(row) == len(rows[0]) and all(map(is_number, row)) for row in rows):
        refuse(path, f"{KEY}.losses", f"the losses of at most {most} steps")


def check_scaler(saved: Any, scaler: GradScaler, path: str | Path) -> None:
    """Raise UserError unless `saved` is the state of such a scaler as this one; one that is not enabled has none."""
    if scaler.is_enabled() and (
        not isinstance(saved, dict)
        or saved.keys() != scaler.state_dict().keys()
        or not all(is_number(value) for value in saved.values())
        or saved["scale"] <= 0
    ):
        refuse(path, f"{KEY}.scaler", "the state of a gradient scaler; keep train.amp")


def check_optimizer(saved: Any, optimizer: Optimizer, path: str | Path) -> None:
    """Raise UserError unless `saved` is the state of an optimiser of this kind over these parameters."""
    key = f"{KEY}.optimizer"
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict):
        refuse(path, key, "the state of an optimiser")
    groups, current = saved.get("param_groups"), optimizer.state_dict()["param_groups"]
    sizes = [len(group["params"]) for group in current]
    if not isinstance(groups, list) or [_size(group) for group in groups] != sizes:
        raise UserError(f"{path}: saved by another optimiser; keep train.optimizer and the factors on the rate")
    parameters: list[Tensor] = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {"momentum_buffer"} if isinstance(optimizer, SGD) else {"step", "exp_avg", "exp_avg_sq"}
    for number, state in saved["state"].items():
        where = f"{key}.state[{number!r}]"
        if not is_count(number) or number >= len(parameters) or not isinstance(state, dict) or state.keys() != names:
            refuse(path, where, f"{', '.join(sorted(names))} of a parameter")
        for name, value in state.items():
            shape = () if name == "step" else parameters[number].shape
            if not is_plain_tensor(value) or not value.is_floating_point() or value.shape != shape:
                refuse(path, f"{where}[{name!r}]", f"floating-point numbers of shape {tuple(shape)}")
            if name in ("step", "exp_avg_sq") and bool((value < 0).any()):
                refuse(path, f"{where}[{name!r}]", "positive")


def _size(group: Any) -> int:
    params = group.get("params") if isinstance(group, dict) else None
    return len(params) if isinstance(params, list) else -1


def _check_values(value: Any, path: str | Path, key: str) -> None:
    """Raise UserError where something below `value` is neither plain data nor a plain tensor."""
    if isinstance(value, dict):
        for name, below in value.items():
            _check_values(below, path, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for number, below in enumerate(value):
            _check_values(below, path, f"{key}[{number}]")
    elif isinstance(value, Tensor):
        if not is_plain_tensor(value):
            refuse(path, key, "a tensor of plain numbers")
        if nonfinite({key: value}) is not None:
            refuse(path, key, "finite")
    elif not (value is None or isinstance(value, str | bool) or is_number(value)):
        refuse(path, key, "a finite number, text, or a tensor")
