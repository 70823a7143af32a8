"""Checkpoints: plain tensors and data, written completely or not at all, read with `weights_only=True` and verified.

A checkpoint is a dict with
    format       "detkit 3"
    model        the state dict that inference uses (the average's where EMA is on)
    config       the resolved config, as plain dicts
    classes      names, in the order of the labels
    iteration    optimiser steps behind these weights
    metrics      the latest evaluation, {} where there was none
    best_scores  in those of a training that was evaluated: split and scores of a detkit.models.Thresholds
    training     in last.pt only: whatever a resume needs
"""

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from detkit.bundled import BUNDLED, find_bundled
from detkit.checkpoints.content import FORMAT, check_content
from detkit.checkpoints.darknet_files import load_darknet
from detkit.checkpoints.torchvision_files import download, from_state, is_state
from detkit.config import Config
from detkit.errors import UserError, did_you_mean
from detkit.experiment import from_plain, to_plain
from detkit.files import write_file
from detkit.models import Detector, Thresholds, build_detector
from detkit.names import shown
from detkit.verified import nonfinite, read_torch


def save(
    path: str | Path,
    detector: Detector,
    config: Config,
    *,
    iteration: int = 0,
    metrics: dict[str, Any] | None = None,
    best_scores: Thresholds | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint; UserError where the disk is full, with any earlier file of that name intact."""
    content = {
        "format": FORMAT,
        "model": detector.state_dict(),
        "config": to_plain(config),
        "classes": list(detector.classes),
        "iteration": iteration,
        "metrics": metrics or {},
    }
    if best_scores is not None:
        content["best_scores"] = best_scores._asdict()
    if training is not None:
        content["training"] = training
    write(path, content)


def write(path: str | Path, content: dict[str, Any]) -> None:
    """`torch.save` with errors in one line, complete or not at all; tensors as those of a CPU, which all can read."""
    content = tree_map_only(torch.Tensor, lambda tensor: tensor.cpu(), content)
    # through memory, since torch.save to a path turns a full disk into a RuntimeError about zip offsets
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getvalue())


def load(path: str | Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint onto `device`; UserError, naming the file, for anything that is none.

    Other trained detectors stand for a checkpoint, too: detkit's own by name, as `voc`, see bundled.py;
    torchvision's by name, as `torchvision/ssd300_vgg16`, or as a file of their weights, see
    checkpoints/torchvision_files.py.
    """
    path = find_bundled(path) or path
    if str(path).startswith("torchvision/") and not Path(path).exists():
        content = download(str(path))
    elif is_state(content := _read(Path(path), device)) and "format" not in content:
        content = from_state(content, str(path))
    else:
        return check_content(content, path)
    return {**content, "format": FORMAT, "model": {key: tensor.to(device) for key, tensor in content["model"].items()}}


def _read(path: Path, device: torch.device | str) -> Any:
    if not path.exists():
        is_name = path.parent == Path() and not path.suffix
        raise UserError(f"no checkpoint {path}{did_you_mean(str(path), BUNDLED) if is_name else ''}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; a checkpoint is a file such as {path / 'best.pt'}")
    return read_torch(path, "a detkit checkpoint", device)


def load_detector(
    path: str | Path, device: torch.device | str = "cpu", overrides: list[str] | None = None
) -> tuple[Detector, Config]:
    """Rebuild a detector, in evaluation mode, from a checkpoint alone; `overrides` are `key=value` arguments.

    A YOLOv1 of darknet's stands for one, too: a `.weights` file with its `.cfg` beside it, see
    checkpoints/darknet_files.py.
    """
    if str(path).endswith(".weights"):
        detector, config = load_darknet(path, overrides)
    else:
        detector, config = build(load(path, device), path, overrides)
    return detector.to(device).eval(), config


def build(content: dict[str, Any], path: str | Path, overrides: list[str] | None = None) -> tuple[Detector, Config]:
    """Make the detector that `content` describes and give it its weights."""
    config = from_plain(content["config"], str(path), overrides)
    detector = make_detector(config, tuple(content["classes"]), path)
    load_weights(detector, content["model"], path)
    detector.best_scores = thresholds_of(content)
    return detector, config


def thresholds_of(content: Mapping[str, Any]) -> Thresholds | None:
    """Return the thresholds that a checkpoint has, None where it has none."""
    return Thresholds(**content["best_scores"]) if "best_scores" in content else None


def make_detector(config: Config, classes: tuple[str, ...], path: str | Path) -> Detector:
    """Make the detector of a file's config, without pretrained weights; UserError, naming the file, for none."""
    backbone = getattr(config.model, "backbone", None)
    weights = getattr(backbone, "weights", None)
    if backbone is not None:
        backbone.weights = None  # they would be read, or fetched, only to be overwritten
    try:
        detector = build_detector(config.model, classes)
    except (ValueError, ArithmeticError, RuntimeError, MemoryError) as error:  # of layers that cannot be
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: config.model makes no detector: {reason}") from None
    if backbone is not None:
        backbone.weights = weights
    return detector


def start_from(detector: Detector, path: str | Path) -> None:
    """Give a new detector the weights of a checkpoint (see `load`), and print which layers it keeps.

    Those that depend on the classes stay as they are where the checkpoint's classes are others. UserError where
    anything else does not fit.
    """
    content = load(path)
    current, weights = detector.state_dict(), dict(content["model"])
    left: list[str] = []
    if tuple(content["classes"]) != detector.classes:
        left = [name for name in current if name.startswith(detector.class_layers)]
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(detector.class_layers)}
        weights |= {name: current[name] for name in left}
    try:
        load_weights(detector, weights, path)
    except UserError as error:
        model = content["config"]["model"]
        backbone = (model.get("backbone") or {}).get("name")
        raise UserError(f"{error}; they fit model.name={model['name']} model.backbone.name={backbone}") from None
    line = f"weights: {len(current) - len(left)} of {len(current)} tensors from {path}"
    line += f"; new for other classes: {', '.join(left[:4])}{', ...' * (len(left) > 4)}" if left else ""
    print(shown(line), file=sys.stderr)


def load_weights(detector: torch.nn.Module, weights: dict[str, Any], path: str | Path) -> None:
    """Copy a state dict into a detector; UserError that names what does not fit, or is not finite."""
    current = detector.state_dict()
    missing = [name for name in current if name not in weights]
    surplus = [name for name in weights if name not in current]
    shapes = [
        f"{name}: {tuple(weights[name].shape)}, the model has {tuple(current[name].shape)}"
        for name in current
        if name in weights and current[name].shape != weights[name].shape
    ]
    types = [
        f"{name}: {weights[name].dtype}, the model has {tensor.dtype}"
        for name, tensor in current.items()
        if name in weights and _number_kind(weights[name]) != _number_kind(tensor)
    ]
    kinds = (("missing", missing), ("unknown", surplus), ("of another shape", shapes), ("of another type", types))
    wrong = [f"{len(names)} {what} ({names[0]}{', ...' * (len(names) > 1)})" for what, names in kinds if names]
    if wrong:
        raise UserError(f"{path}: checkpoint of another architecture, weights {', '.join(wrong)}")
    detector.load_state_dict(weights)
    if (broken := nonfinite(detector.state_dict())) is not None:
        raise UserError(f"{path}: {broken} holds values that are not finite; take an earlier checkpoint")


def _number_kind(tensor: torch.Tensor) -> tuple[bool, bool, bool]:
    """Floating-point numbers of any size are of one kind, integers of any size of another."""
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool
