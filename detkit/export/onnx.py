"""Export to ONNX: a detector's networks, with normalisation before them and decoding after them.

NMS is left to the program that runs the files. So is the pooling of regions, and region detectors become two files, one
for the image and one for its regions.
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
MAX_BYTES = 2**31  # of one file: protobuf's limit


@dataclass(frozen=True)
class Difference:
    """One output for one random input: its shape, its largest value, and the largest difference from torch's."""

    output: str
    shape: tuple[int, ...]
    largest: float
    difference: float


@dataclass(frozen=True)
class Written:
    """One file, its size in bytes, and its outputs beside torch's; None where onnxruntime is not installed."""

    path: Path
    size: int
    differences: tuple[Difference, ...] | None


def export_onnx(path: str | Path, out: str | Path) -> list[Written]:
    """Write the networks of a checkpoint's detector as ONNX, in float32; return the files.

    SSD, YOLO, RetinaNet: `out`, with boxes and scores before NMS. R-CNN: `out`, for crops. Faster R-CNN:
    OUT-rpn.onnx and OUT-head.onnx; Fast R-CNN and SPPNet: OUT-map.onnx and OUT-head.onnx. Batches, numbers of regions,
    and where detectors keep images' aspect ratio height and width too, are free. Each file's metadata say in JSON what
    its inputs and outputs are, the classes, and the InputSpec, whose mean and std are applied inside.
    All files are written or none. Raises UserError, in one line: no checkpoint, a detector that can't be exported,
    missing packages, a file that exists already or that would be too large.
    """
    _check_packages()
    out = Path(out)
    if out.suffix != ".onnx":
        raise UserError(f"--onnx {out}: the name of an ONNX file ends in .onnx")
    detector, _ = checkpoint.load_detector(path)
    parts = _parts(detector, path)
    files = {out.with_name(f"{out.stem}{end}{out.suffix}"): part for end, part in parts.items()}
    for file, part in files.items():
        if file.exists():
            raise UserError(f"{file} exists already; remove it, or give another --onnx")
        size = sum(weight.nbytes for weight in part.network.state_dict().values())
        if size >= MAX_BYTES:
            limit = f"an ONNX file holds less than {MAX_BYTES / 1e9:.1f} GB"
            raise UserError(f"{file}: {size / 1e9:.1f} GB of weights; {limit}")
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
    outputs = session.run(None, {name: part_input.probe.numpy() for name, part_input in part.inputs.items()})
    with torch.inference_mode():
        expected = part.network(*(part_input.probe for part_input in part.inputs.values()))
    expected = [expected] if isinstance(expected, Tensor) else expected
    return tuple(
        Difference(name, tuple(theirs.shape), _largest(theirs), _largest(torch.from_numpy(ours) - theirs))
        for name, ours, theirs in zip(part.outputs, outputs, expected, strict=True)
    )


def _parts(detector: Detector, path: str | Path) -> dict[str, ExportPart]:
    """Return what becomes a file, by the end of its name; UserError for a detector that can't be exported."""
    name = detector.config.name
    try:
        parts = detector.export_parts()
    except UserError as error:
        raise UserError(f"{path}: {name} can't be exported to ONNX: {error}") from None
    if not parts:
        raise UserError(
            f"{path}: {name} can't be exported to ONNX: {type(detector).__name__}.export_parts names no network; a "
            "DenseDetector's and a RegionDetector's do"
        )
    return parts


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"--onnx needs {error.name}; pip install onnx onnxscript onnxruntime") from None


def _trace(part: ExportPart, metadata: Mapping[str, str], path: str | Path) -> torch.onnx.ONNXProgram:
    try:
        with _quiet():
            program = torch.onnx.export(
                part.network.eval(),
                tuple(part_input.example for part_input in part.inputs.values()),
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                dynamic_shapes={name: part_input.axes for name, part_input in part.inputs.items()},
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
    """Hide the exporter's warnings: shared axis names, constants not folded, inequalities that it can't solve."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _metadata(detector: Detector, part: ExportPart) -> dict[str, str]:
    """Return what a program needs to run a file without detkit, as JSON."""
    values = {
        "model": detector.config.name,
        "classes": detector.classes,
        "input": asdict(detector.input) | {"normalisation": "inside"},
        "inputs": {name: part_input.text for name, part_input in part.inputs.items()},
        "outputs": part.outputs,
        **part.facts,
    }
    return {key: json.dumps(value) for key, value in values.items()}
