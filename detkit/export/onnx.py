"""Export to ONNX: a detector's networks, with normalisation before them and decoding after them.

NMS is left to the program that runs the files, unless a dense detector's is asked for. So is the pooling of regions,
and region detectors become two files, one for the image and one for its regions.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from detkit.checkpoints import checkpoint
from detkit.errors import UserError
from detkit.export.int8 import Measured, check_int8, to_int8
from detkit.export.nms import translations, with_nms
from detkit.export.weights import half_weights
from detkit.files import atomic_path
from detkit.inference.backends.onnx_file import seal_parts
from detkit.inference.backends.tracing import check_packages, export_parts, trace_parts, with_batch
from detkit.models.parts import ExportPart


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


@dataclass(frozen=True)
class Form:
    """In which form networks are exported.

    nms: whether NMS is inside, as the config's `detect` has it, of detectors of one file. batch: of images, None for
    any. fp16: whether weights are half precision. int8: whether they, and what is computed, are 8-bit integers; then
    calibrated on `images` images of the split `train` of the config's data set, evenly spread, and evaluated on
    `split`. overrides: `key=value`, of the checkpoint's config.
    """

    nms: bool = False
    batch: int | None = None
    fp16: bool = False
    int8: bool = False
    images: int = 300
    split: str = "test"
    overrides: tuple[str, ...] = ()


def export_onnx(path: str | Path, out: str | Path, form: Form = Form()) -> tuple[list[Written], Measured | None]:
    """Write the networks of a checkpoint's detector as ONNX; return the files, and what INT8 costs.

    SSD, YOLO, RetinaNet: `out`, with boxes and scores before NMS. R-CNN: `out`, for crops. Faster R-CNN:
    OUT-rpn.onnx and OUT-head.onnx; Fast R-CNN and SPPNet: OUT-map.onnx and OUT-head.onnx. Numbers of regions, and where
    detectors keep images' aspect ratio height and width too, are free. Each file's metadata say in JSON what its inputs
    and outputs are, the classes, and the InputSpec, whose mean and std are applied inside.
    All files are written or none. Raises UserError, in one line: no checkpoint, a detector that can't be exported, so
    or at all, missing packages, a file that exists already or that would be too large.
    """
    check_packages("--onnx")
    if form.int8:
        check_int8()
    out = Path(out)
    if out.suffix != ".onnx":
        raise UserError(f"--onnx {out}: the name of an ONNX file ends in .onnx")
    detector, config = checkpoint.load_detector(path, overrides=[*form.overrides])
    parts = export_parts(detector, path)
    files = {end: out.with_name(f"{out.stem}{end}{out.suffix}") for end in parts}
    for file in files.values():
        if file.exists():
            raise UserError(f"{file} exists already; remove it, or give another --onnx")
    if form.nms:
        parts = with_nms(detector, parts, config.detect)
    if form.batch is not None:
        parts = with_batch(parts, form.batch)
    networks = trace_parts(parts, path, translations())
    if form.fp16:
        networks = {end: half_weights(network, path) for end, network in networks.items()}
    seal = partial(seal_parts, detector=detector, config=config, parts=parts)
    if form.int8:
        contents, measured = to_int8(networks, seal, form.images, form.split, path)
    else:
        contents, measured = seal(networks), None
    with ExitStack() as stack:
        for end, file in files.items():
            stack.enter_context(atomic_path(file)).write_bytes(contents[end])
    compared = {end: None if form.int8 else compare(file, parts[end]) for end, file in files.items()}
    return [Written(file, file.stat().st_size, compared[end]) for end, file in files.items()], measured


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


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
