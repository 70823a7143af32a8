"""Detectors whose networks run on torch, ONNX Runtime or OpenVINO; all else of a detection is the same.

A detector is a checkpoint, or the ONNX files that `detkit export` makes of one.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from detkit.checkpoints.checkpoint import load_detector, make_detector
from detkit.config import Config
from detkit.errors import UserError, did_you_mean, in_a_line
from detkit.experiment import from_plain
from detkit.inference.backends.forms import AfterNMS, OfBatches
from detkit.inference.backends.onnx_file import ONNXFile, read_files, seal_parts, verify
from detkit.inference.backends.runtimes import RUNTIMES
from detkit.inference.backends.tracing import check_packages, export_parts, trace_parts
from detkit.inference.fast import Fast
from detkit.models import Detector, Thresholds
from detkit.models.parts import PartRun
from detkit.runtime.device import choose_device, resolve_amp, to_device

BACKENDS = ("auto", "torch", *RUNTIMES)


def open_detector(
    path: str | Path, device: str | None = None, backend: str | None = None, overrides: list[str] | None = None
) -> tuple[Detector, Config]:
    """Return a detector, in evaluation mode and on its device, and its config.

    path: a checkpoint as `load_detector` takes it, or an .onnx file, see `read_files`. device: None is the config's.
    backend: one of BACKENDS; `auto` is the fastest that is installed, on CUDA, and for a detector in bfloat16 on a
    processor that multiplies it, torch. None is `auto` for ONNX files and torch for checkpoints, since another one
    means an export first, which takes seconds. overrides: `key=value`.
    Raises UserError, in one line: a file that is missing, damaged, another program's or another detkit's; a backend
    that is unknown or not installed, or that can't run this detector.
    """
    check_name(backend)
    if str(path).endswith(".onnx"):
        return _open_files(Path(path), device, backend or "auto", overrides)
    place = None if device is None else choose_device(device)  # before the file is read
    detector, config = load_detector(path, place or "cpu", overrides)
    place = place or choose_device(config.train.device)
    to_device(detector, place, config.train.channels_last)
    name = backend or "torch"
    if name == "auto":
        # bfloat16, where the processor multiplies it, is quicker than the others' float32
        short = resolve_amp(place, config.train.amp) == resolve_amp(place, "auto") == "bf16"
        name = fastest() if place.type == "cpu" and not short and _can_export(detector) else "torch"
    if name == "torch":
        detector.fast = Fast(detector, config.detect.compile)
        return detector, config
    _check(name, path, place.type)
    check_packages(f"--backend {name}, for which checkpoints are exported,")
    parts = export_parts(detector, path)
    contents = seal_parts(trace_parts(parts, path), detector, config, parts)
    return open_exported({end: verify(content, Path(path)) for end, content in contents.items()}, name, path)


def check_name(backend: str | None) -> None:
    """Raise UserError for a name that is no backend's."""
    if backend is not None and backend not in BACKENDS:
        raise UserError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}{did_you_mean(backend, BACKENDS)}")


def _open_files(path: Path, device: str | None, backend: str, overrides: list[str] | None) -> tuple[Detector, Config]:
    name = fastest() if backend == "auto" else backend
    if name == "torch":
        raise UserError(f"{path}: torch runs no ONNX files; {' or '.join(RUNTIMES)} does: pip install onnxruntime")
    asked = [text.partition("=")[2] for text in overrides or () if text.startswith("train.device=")]
    _check(name, path, device or ["auto", *asked][-1])  # the last one counts
    choose_device("cpu")  # which it tunes
    return open_exported(read_files(path), name, path, overrides)


def open_exported(
    files: Mapping[str, ONNXFile],
    name: str,
    path: str | Path,
    overrides: list[str] | None = None,
    watch: Callable[[str, PartRun], PartRun] = lambda end, run: run,
) -> tuple[Detector, Config]:
    """Return the detector of files, by the ends of their names, on a runtime, and its config.

    path: the files' name, for errors. watch: what stands for the network of each file.
    """
    own = next(iter(files.values())).values
    # float32 on the CPU, images channel by channel
    config = from_plain(own["config"], str(path), overrides)
    config = replace(config, train=replace(config.train, device="cpu", channels_last=False, amp="none"))
    with _NoRandomValues():
        detector = make_detector(config, tuple(own["classes"]), path)
    if (thresholds := own.get("best_scores")) is not None:
        detector.best_scores = Thresholds(**thresholds)
    parts: dict[str, PartRun] = {}
    for end, file in files.items():
        try:
            runtime = RUNTIMES[name](file.content)
        except Exception as error:  # whatever the program has
            raise UserError(f"{file.path}: {name} can't run it: {in_a_line(error)}") from None
        run = watch(end, runtime)
        if "batch" in file.values:
            run = OfBatches(run, file.values["batch"], file.values["batched"])
        if "nms" in file.values:
            run, detector.fixed_nms = AfterNMS(run, len(detector.classes)), file.values["nms"]
        parts[end], detector.backend = run, runtime.name
    detector.use_parts(parts)
    for parameter in detector.parameters():  # gives the memory back
        parameter.data = parameter.data.new_empty(0)
    return detector.eval(), config


def fastest() -> str:
    """Return the fastest backend that is installed, on a CPU."""
    return installed()[0]


def installed() -> list[str]:
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
    if name not in installed():
        raise UserError(f"{path}: backend {name} is not installed; pip install {name}")
    if device not in ("auto", "cpu"):
        raise UserError(f"{path}: backend {name} runs on the CPU; device {device} goes with a checkpoint on torch")


class _NoRandomValues(TorchFunctionMode):
    """Leaves out drawing weights that nobody reads: the constructor's time is in that, and memory's pages, too."""

    LEFT_OUT = (Tensor.normal_, Tensor.uniform_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in self.LEFT_OUT else func(*args, **(kwargs or {}))
