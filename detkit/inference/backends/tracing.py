"""From a detector's networks to ONNX, by torch's exporter."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from detkit.errors import UserError
from detkit.models import Detector
from detkit.models.parts import ExportPart, PartInput

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


def trace_parts(
    parts: Mapping[str, ExportPart], path: str | Path, translations: Mapping[Any, Any] | None = None
) -> dict[str, bytes]:
    """Return the networks of `export_parts` in ONNX's form, by the same names.

    path: of the checkpoint. translations: of operators that the exporter does not know.
    """
    return {end: _trace(part, path, translations) for end, part in parts.items()}


def with_batch(parts: Mapping[str, ExportPart], count: int) -> dict[str, ExportPart]:
    """Return the parts with `count` images in each batch, no more and no fewer; UserError where none takes images."""
    if not any(part_input.axes.get(0) == "batch" for part in parts.values() for part_input in part.inputs.values()):
        raise UserError("--batch: what this detector exports takes regions, whose number is free, and no images")
    return {end: _with_batch(part, count) for end, part in parts.items()}


def _with_batch(part: ExportPart, count: int) -> ExportPart:
    def fixed(one: PartInput) -> PartInput:
        if one.axes.get(0) != "batch":
            return one
        example, probe = (x[torch.arange(count) % len(x)] for x in (one.example, one.probe))
        axes = {axis: name for axis, name in one.axes.items() if axis}
        return PartInput(example, probe, axes, one.text.replace("(batch", f"({count}", 1))

    inputs = {name: fixed(one) for name, one in part.inputs.items()}
    if all(one is part.inputs[name] for name, one in inputs.items()):
        return part
    batched = [text.startswith("(batch") for text in part.outputs.values()]
    outputs = {name: text.replace("(batch", f"({count}", 1) for name, text in part.outputs.items()}
    return replace(part, inputs=inputs, outputs=outputs, run={**part.run, "batch": count, "batched": batched})


def _trace(part: ExportPart, path: str | Path, translations: Mapping[Any, Any] | None) -> bytes:
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
                custom_translation_table=translations,  # pyright: ignore[reportArgumentType]
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
