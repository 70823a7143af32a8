"""What a checkpoint must hold, whoever wrote it: each fault is one line that names the key."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from detkit.errors import UserError

FORMAT = "detkit 3"
KEYS = ("model", "config", "classes", "iteration", "metrics")


def check_content(content: Any, path: str | Path) -> dict[str, Any]:
    """Return a file's content; UserError unless it is a checkpoint's, see checkpoints/checkpoint.py.

    Whether the weights fit the detector and are finite is found by `checkpoint.load_weights`.
    """
    if not isinstance(content, dict) or "format" not in content:
        found = f"a dict of {', '.join(map(str, list(content)[:3]))}, ..." if isinstance(content, dict) else "no dict"
        raise UserError(
            f"{path}: not a detkit checkpoint ({found}); weights of a backbone go to model.backbone.weights"
        )
    if content["format"] != FORMAT:
        raise UserError(
            f"{path}: checkpoint format {content['format']!r}, this detkit reads {FORMAT!r} alone; train again, or use "
            "the detkit that wrote it"
        )
    missing = [key for key in KEYS if key not in content]
    if missing:
        raise UserError(f"{path}: damaged checkpoint, no {' and no '.join(missing)} in it")
    check_tensors(content["model"], path, "model")
    classes = content["classes"]
    config = content["config"] if isinstance(content["config"], dict) else {}
    if not isinstance(config.get("model"), dict) or not isinstance(config.get("train"), dict):
        refuse(path, "config", "the config of a training run")
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes) or not classes:
        refuse(path, "classes", "a list of names")
    if len(set(classes)) < len(classes):
        refuse(path, "classes", "a list of different names")
    if not is_count(content["iteration"]):
        refuse(path, "iteration", "a whole number from 0 on")
    if not isinstance(content["metrics"], dict) or not _is_json(content["metrics"]):
        refuse(path, "metrics", "a dict of plain values")
    if "best_scores" in content and not _are_thresholds(content["best_scores"], classes):
        refuse(path, "best_scores", "a split, val or test, and the scores of classes")
    return content


def refuse(path: str | Path, key: str, expected: str) -> NoReturn:
    """Raise the UserError of a value that is not as expected."""
    raise UserError(f"{path}: damaged checkpoint: {key} is not {expected}")


def check_tensors(tensors: Any, path: str | Path, key: str) -> None:
    """Raise UserError unless `tensors` are tensors by name, none larger than what the file holds of it."""
    if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(name, str) for name in tensors):
        refuse(path, key, "tensors by name")
    for name, tensor in tensors.items():
        if not is_plain_tensor(tensor):
            refuse(path, f"{key}[{name!r}]", "a tensor of plain numbers")


def is_plain_tensor(value: Any) -> bool:
    """Whether a value is a dense tensor with a number in the file for each of its elements."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_nested:
        return False
    stored = not value.is_meta and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    return stored and not value.is_quantized


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _are_thresholds(value: Any, classes: list[str]) -> bool:
    scores = value.get("scores") if isinstance(value, dict) and value.keys() == {"split", "scores"} else None
    known = isinstance(scores, dict) and scores.keys() <= {*classes} and all(map(is_number, scores.values()))
    return known and value["split"] in ("val", "test")


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True
