"""Detectors whose networks run on torch, ONNX Runtime or OpenVINO; all else of a detection is the same.

A detector is a checkpoint, or the ONNX files that `detkit export` makes of one.
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from detkit.checkpoints.checkpoint import load_detector, make_detector
from detkit.config import Config
from detkit.errors import UserError, did_you_mean, in_a_line
from detkit.experiment import from_plain
from detkit.inference.backends.onnx_file import read_files
from detkit.inference.backends.runtimes import RUNTIMES, Runtime
from detkit.inference.backends.tracing import check_packages, export_parts, onnx_files
from detkit.models import Detector
from detkit.runtime.device import choose_device, resolve_amp, to_device

BACKENDS = ("auto", "torch", *RUNTIMES)


def open_detector(
    path: str | Path, device: str | None = None, backend: str | None = None, overrides: list[str] | None = None
) -> tuple[Detector, Config]:
    """Return a detector, in evaluation mode and on its device, and its config.

    path: a checkpoint as `load_detector` takes it, or an .onnx file, see `read_files`. device: None is the config's.
    backend: one of BACKENDS; `auto` is the fastest that is installed, on CUDA torch. None is `auto` for ONNX files and
    torch for checkpoints, since another one means an export first, which takes seconds. overrides: `key=value`.
    Raises UserError, in one line: a file that is missing, damaged, another program's or another detkit's; a backend
    that is unknown or not installed, or that can't run this detector.
    """
    if backend is not None and backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}{did_you_mean(backend, BACKENDS)}")
    if str(path).endswith(".onnx"):
        return _open_files(Path(path), device, backend or "auto", overrides)
    place = None if device is None else choose_device(device)  # before the file is read
    detector, config = load_detector(path, place or "cpu", overrides)
    place = place or choose_device(config.train.device)
    to_device(detector, place, config.train.channels_last)
    name = backend or "torch"
    if name == "auto":
        name = _installed()[0] if place.type == "cpu" and _can_export(detector) else "torch"
    if name == "torch":
        return detector, config
    _check(name, path, place.type)
    check_packages(f"--backend {name}, for which checkpoints are exported,")
    config = _for_runtime(config)
    files = onnx_files(detector, config, export_parts(detector, path), path)
    _use(detector, {end: _start(name, content, config, path) for end, content in files.items()})
    return detector, config


def _open_files(path: Path, device: str | None, backend: str, overrides: list[str] | None) -> tuple[Detector, Config]:
    name = _installed()[0] if backend == "auto" else backend
    if name == "torch":
        raise UserError(f"{path}: torch runs no ONNX files; {' or '.join(RUNTIMES)} does: pip install onnxruntime")
    _check(name, path, device or "auto")
    files = read_files(path)
    own = next(iter(files.values())).values
    config = _for_runtime(from_plain(own["config"], str(path), overrides))
    with _NoRandomValues():
        detector = make_detector(config, tuple(own["classes"]), path)
    choose_device("cpu")  # which it tunes
    _use(detector, {end: _start(name, file.content, config, file.path) for end, file in files.items()})
    return detector.eval(), config


def _installed() -> list[str]:
    """Return the backends that are there, the fastest first."""
    return [*(name for name in RUNTIMES if find_spec(name) is not None), "torch"]


def _can_export(detector: Detector) -> bool:
    try:
        check_packages("")
        return bool(export_parts(detector, ""))
    except UserError:
        return False


def _check(name: str, path: str | Path, device: str) -> None:
    """Raise UserError unless a backend is installed and may run on this device."""
    if name not in _installed():
        raise UserError(f"{path}: backend {name} is not installed; pip install {name}")
    if device not in ("auto", "cpu"):
        raise UserError(f"{path}: backend {name} runs on the CPU; device {device} goes with a checkpoint on torch")


def _for_runtime(config: Config) -> Config:
    """Return the config of a detector that a runtime computes: on the CPU, images channel by channel."""
    return replace(config, train=replace(config.train, device="cpu", channels_last=False))


def _start(name: str, content: bytes, config: Config, path: str | Path) -> Runtime:
    try:
        return RUNTIMES[name](content, resolve_amp(torch.device("cpu"), config.train.amp) == "bf16")
    except Exception as error:  # whatever the program has
        raise UserError(f"{path}: {name} can't run it: {in_a_line(error)}") from None


def _use(detector: Detector, parts: Mapping[str, Runtime]) -> None:
    """Let the parts compute the detector's networks, and give the memory of its weights back."""
    detector.use_parts(parts)
    detector.backend = next(iter(parts.values())).name
    for parameter in detector.parameters():
        parameter.data = parameter.data.new_empty(0)


class _NoRandomValues(TorchFunctionMode):
    """Leaves out drawing weights that nobody reads: the constructor's time is in that, and memory's pages, too."""

    LEFT_OUT = (Tensor.normal_, Tensor.uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in self.LEFT_OUT else func(*args, **(kwargs or {}))
