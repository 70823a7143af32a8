"""Export to ONNX: a detector's networks, with normalisation in front and whatever decoding no data decides behind.

NMS, and the pooling of regions that an RPN or a proposal method found, are left to who runs the files; so the region
detectors become two files, one for the image and one for its regions.
"""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from detkit.checkpoints import checkpoint
from detkit.errors import UserError
from detkit.files import atomic_path
from detkit.models import Detector
from detkit.models.parts import ExportPart

OPSET = 18  # what torch's exporter writes without converting
MOST = 2**31  # bytes of one file: protobuf's limit
INSTALL = "pip install onnx onnxscript onnxruntime"
LOGGERS = ("onnxscript", "torch.fx.experimental.symbolic_shapes")
SEED = 0


@dataclass(frozen=True)
class Difference:
    """One output of onnxruntime beside torch's, for one random input: the shape, the largest value and difference."""

    output: str
    shape: tuple[int, ...]
    largest: float
    difference: float


@dataclass(frozen=True)
class Written:
    """One file, its bytes, and how near onnxruntime comes to torch; None where onnxruntime is not installed."""

    path: Path
    size: int
    differences: tuple[Difference, ...] | None


def parts(detector: Detector) -> dict[str, ExportPart]:
    """Return what becomes a file, by the end of its name; UserError for a detector that can't be exported."""
    found = detector.export_parts()
    if not found:
        raise UserError(
            f"{detector.config.name} can't be exported to ONNX: it names no network that could be (export_parts)"
        )
    return found


def export_onnx(path: str | Path, out: str | Path) -> list[Written]:
    """Write the networks of a checkpoint's detector as ONNX, in float32; return the files.

    SSD, YOLOv1: `out`, with boxes and scores before NMS. R-CNN: `out`, for crops. Faster R-CNN: OUT-rpn.onnx and
    OUT-head.onnx; Fast R-CNN and SPPNet: OUT-map.onnx and OUT-head.onnx. Batches, numbers of regions, and where
    detectors keep images' aspect ratio height and width too, are free. Each file's metadata say in JSON what its inputs
    and outputs are, the classes, and the InputSpec, whose mean and std are applied inside.
    All files are written or none. Raises UserError, in one line: no checkpoint, a detector that can't be exported,
    missing packages, a file that is there or that would be too large.
    """
    _check_packages()
    out = Path(out)
    if out.suffix != ".onnx":
        raise UserError(f"--onnx {out}: the name of an ONNX file ends in .onnx")
    detector, _ = checkpoint.load_detector(path)
    try:
        split = parts(detector)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    files = {out.with_name(f"{out.stem}{end}{out.suffix}"): part for end, part in split.items()}
    for file, part in files.items():
        if file.exists():
            raise UserError(f"{file} exists already; remove it, or give another --onnx")
        size = sum(weight.nbytes for weight in part.network.state_dict().values())
        if size >= MOST:
            raise UserError(f"{file}: {size / 1e9:.1f} GB of weights; an ONNX file holds less than {MOST / 1e9:.1f} GB")
    programs = {file: _trace(part, _metadata(detector, part), path) for file, part in files.items()}
    with ExitStack() as stack:
        for file, program in programs.items():
            program.save(str(stack.enter_context(atomic_path(file))), external_data=False)
    return [Written(file, file.stat().st_size, compare(file, part)) for file, part in files.items()]


def compare(file: Path, part: ExportPart) -> tuple[Difference, ...] | None:
    """Run a file in onnxruntime, on the CPU, beside the network in torch, on a random input of another size."""
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: one.probe.numpy() for name, one in part.inputs.items()})
    with torch.inference_mode():
        wanted = part.network(*(one.probe for one in part.inputs.values()))
    wanted = [wanted] if isinstance(wanted, Tensor) else wanted
    return tuple(
        Difference(name, tuple(want.shape), _largest(want), _largest(torch.from_numpy(got) - want))
        for name, got, want in zip(part.outputs, found, wanted)
    )


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"--onnx needs {error.name}; {INSTALL}") from None


def _trace(part: ExportPart, metadata: Mapping[str, str], path: str | Path) -> torch.onnx.ONNXProgram:
    try:
        with _quiet():
            program = torch.onnx.export(
                part.network.eval(),
                tuple(one.example for one in part.inputs.values()),
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                dynamic_shapes={name: one.axes for name, one in part.inputs.items()},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UserError(f"{path}: torch can't export this network to ONNX: {reason}") from None
    assert program is not None
    program.model.metadata_props.update(metadata)
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of shared axis names, unfolded constants and inequalities that it can't solve."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _metadata(detector: Detector, part: ExportPart) -> dict[str, str]:
    """What it takes to run a file without detkit, as JSON."""
    values = {
        "model": detector.config.name,
        "classes": detector.classes,
        "input": asdict(detector.input) | {"normalisation": "inside"},
        "inputs": {name: one.text for name, one in part.inputs.items()},
        "outputs": part.outputs,
        **part.facts,
    }
    return {key: json.dumps(value) for key, value in values.items()}
