"""From a detector's networks to ONNX, by torch's exporter."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import torch

from detkit.config import Config
from detkit.errors import UserError
from detkit.inference.backends.onnx_file import metadata, own_metadata, seal
from detkit.models import Detector
from detkit.models.parts import ExportPart

OPSET = 18  # what torch's exporter writes without converting
MAX_BYTES = 2**31  # of one file: protobuf's limit


def check_packages(what: str) -> None:
    """Raise UserError unless there is what the exporter needs. what: needs it, for the error."""
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"{what} needs {error.name}; pip install onnx onnxscript onnxruntime") from None


def export_parts(detector: Detector, path: str | Path) -> dict[str, ExportPart]:
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
    for end, part in parts.items():
        size = sum(weight.nbytes for weight in part.network.state_dict().values())
        if size >= MAX_BYTES:
            limit = f"an ONNX file holds less than {MAX_BYTES / 1e9:.1f} GB"
            raise UserError(f"{path}: {name}{end} has {size / 1e9:.1f} GB of weights; {limit}")
    return parts


def onnx_files(
    detector: Detector, config: Config, parts: Mapping[str, ExportPart], path: str | Path
) -> dict[str, bytes]:
    """Return the content of the files of `export_parts`, by the ends of their names; path: of the checkpoint."""
    networks = {end: _trace(part, path) for end, part in parts.items()}
    own = own_metadata(detector, config, [*parts], sha256(b"".join(networks.values())).hexdigest())
    return {end: seal(networks[end], metadata(detector, part), own | {"part": end}) for end, part in parts.items()}


def _trace(part: ExportPart, path: str | Path) -> bytes:
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
    return program.model_proto.SerializeToString()


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
