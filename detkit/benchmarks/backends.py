"""Detection on each backend that is installed, beside the programs alone on the same file."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from detkit.data.batch import make_batch
from detkit.data.image_file import decode_image
from detkit.data.transforms import build_test
from detkit.errors import UserError
from detkit.inference.backends import export_parts, installed, open_detector, read_files, trace_parts
from detkit.inference.evaluate import detect_batch
from detkit.inference.sources import find_sources
from detkit.models import Detector
from detkit.models.parts import ExportPart
from detkit.runtime.race import Benchmark, Job, Runner, Setting
from detkit.structures import Images

COUNTS = 1, 8
SCORES = 0.5, 0.01  # those of use, and those of evaluation
ONNX = ".onnx"


def backend_benchmarks(checkpoint: str, images: str) -> list[Benchmark]:
    """Return a benchmark for each number of images: each program alone, then detkit on each backend.

    checkpoint: or an .onnx file, which torch does not run. Alone: the network of the exported file, from pixels in the
    memory to its outputs; with detkit, to detections. Only a detector of one file, as dense ones are, has rows of
    programs alone. UserError where there are no images.
    """
    paths = [source for source in find_sources([images]) if isinstance(source, Path)]
    if not paths:
        raise UserError(f"--images {images}: no images")
    names = [name for name in installed() if name != "torch" or not checkpoint.endswith(ONNX)]
    alone = ALONE if [*parts(checkpoint)] == [""] else {}
    return [
        Benchmark(
            f"{checkpoint}, {count} image{'s' * (count > 1)}",
            (
                *(
                    Runner(f"{name} alone", partial(network, checkpoint, paths, count, name))
                    for name in names
                    if name in alone
                ),
                *(
                    Runner(f"detkit on {name}, scores >= {score:g}", setup, True)
                    for name in names
                    for score in SCORES
                    for setup in [partial(detection, checkpoint, paths, count, name, score)]
                ),
            ),
        )
        for count in COUNTS
    ]


def detection(checkpoint: str, paths: list[Path], count: int, backend: str, score: float, setting: Setting) -> Job:
    """Return the job from pixels to detections."""
    detector, config = open_detector(checkpoint, setting.device, backend)
    images, device = batch(detector, paths, count), torch.device(setting.device)
    config = replace(config, detect=replace(config.detect, score_threshold=score))
    return torch.inference_mode()(lambda: detect_batch(detector, images, config, device))


def network(checkpoint: str, paths: list[Path], count: int, backend: str, setting: Setting) -> Job:
    """Return the job of the network in a program alone."""
    detector, _ = open_detector(checkpoint, "cpu")
    return ALONE[backend](parts(checkpoint)[""](), batch(detector, paths, count).pixels, setting)


def parts(checkpoint: str) -> dict[str, Callable[[], bytes]]:
    """Return what gives the content of each file that a detector is, or is exported to, by the end of its name."""
    if checkpoint.endswith(ONNX):
        return {end: partial(getattr, file, "content") for end, file in read_files(Path(checkpoint)).items()}
    exported = export_parts(open_detector(checkpoint, "cpu")[0], checkpoint)
    return {end: partial(_trace, end, part, checkpoint) for end, part in exported.items()}


def _trace(end: str, part: ExportPart, checkpoint: str) -> bytes:
    return trace_parts({end: part}, checkpoint)[end]


def batch(detector: Detector, paths: list[Path], count: int) -> Images:
    """Return the first `count` images, from the beginning again where there are fewer."""
    transform = build_test(detector.input)
    decoded = [decode_image(paths[number % len(paths)]) for number in range(count)]
    none = torch.zeros(0, 4).numpy()
    pixels = [transform(image, none)[0] for image in decoded]
    return make_batch(pixels, [image.shape[:2] for image in decoded])


def openvino_alone(content: bytes, pixels: Tensor, setting: Setting) -> Job:
    import openvino  # pyright: ignore[reportMissingImports]

    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": setting.threads}
    request = core.compile_model(core.read_model(BytesIO(content)), "CPU", options).create_infer_request()
    array = pixels.contiguous().numpy()
    return lambda: request.infer({0: array}, share_inputs=True, share_outputs=True)


def onnxruntime_alone(content: bytes, pixels: Tensor, setting: Setting) -> Job:
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: pixels.contiguous().numpy()}
    return lambda: session.run(None, inputs)


ALONE: dict[str, Callable[[bytes, Tensor, Setting], Job]] = {
    "openvino": openvino_alone,
    "onnxruntime": onnxruntime_alone,
}
