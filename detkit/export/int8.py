"""INT8 by NNCF: networks whose convolutions and fully connected layers multiply 8-bit integers.

Of a calibration on images; the ranges of all that is computed are those that were seen there.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.data.loader import open_proposals, test_loader
from detkit.data.opening import open_dataset
from detkit.errors import UserError, in_a_line
from detkit.evaluation import Result
from detkit.inference.backends import fastest, open_exported
from detkit.inference.backends.onnx_file import ONNXFile, verify
from detkit.inference.evaluate import evaluate
from detkit.models.parts import PartRun
from detkit.runtime.device import choose_device

REGIONS = 16  # of an image that calibrate a network of regions


@dataclass(frozen=True)
class Measured:
    """Results on one split before and after, in float32 and INT8. calibration: how many images; dataset: of the split;
    backend: what ran both."""

    before: Result
    after: Result
    calibration: int
    dataset: str
    backend: str


def check_int8() -> None:
    """Raise UserError where a package is missing."""
    try:
        import nncf  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxruntime  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"--int8 needs {error.name}; pip install nncf onnxruntime openvino") from None


def to_int8(
    networks: Mapping[str, bytes],
    seal: Callable[[Mapping[str, bytes]], dict[str, bytes]],
    count: int,
    split: str,
    path: str | Path,
) -> tuple[dict[str, bytes], Measured]:
    """Return the files of quantised networks, by the ends of their names, and mAP before and after.

    networks: in float32; seal: makes files of networks. count: of images of the split `train`, evenly spread, to
    calibrate on; split: to evaluate on. path: of the checkpoint.
    """
    choose_device("cpu")
    before, seen = _files(seal(networks), path), {end: _Seen() for end in networks}
    detector, config = open_exported(before, fastest(), path, watch=lambda end, run: seen[end].of(run))
    tested = open_dataset(config.data, split, detector.classes)  # before the work begins: it may not be there
    dataset = open_dataset(config.data, "train", detector.classes)
    count = min(count, len(dataset))
    others = frozenset(range(len(dataset))) - {number * len(dataset) // count for number in range(count)}
    proposals = open_proposals(dataset, config.data)
    with torch.inference_mode():
        for images, _ in test_loader(dataset, detector.input, batch=1, workers=0, proposals=proposals, skip=others):
            detector.predict(images)
    contents = seal({end: _quantise(network, seen[end].inputs, path) for end, network in networks.items()})
    results: list[Result] = []
    for files in (before, _files(contents, path)):
        detector, config = open_exported(files, fastest(), path)
        results.append(evaluate(detector, tested, config).result)
    return contents, Measured(results[0], results[1], count, tested.name, detector.backend)


def _files(contents: Mapping[str, bytes], path: str | Path) -> dict[str, ONNXFile]:
    return {end: verify(content, Path(path)) for end, content in contents.items()}


class _Seen:
    """What a network got. inputs: by name, one entry a call, of many regions a few, evenly spread."""

    def __init__(self) -> None:
        self.inputs: list[dict[str, np.ndarray]] = []

    def of(self, run: PartRun) -> PartRun:
        def call(**inputs: Tensor) -> Any:
            entry = {name: value[:: max(1, len(value) // REGIONS)].contiguous() for name, value in inputs.items()}
            self.inputs.append({name: value.numpy().copy() for name, value in entry.items()})
            return run(**inputs)

        return call


def _quantise(network: bytes, inputs: list[dict[str, np.ndarray]], path: str | Path) -> bytes:
    import nncf  # pyright: ignore[reportMissingImports]
    import onnx  # pyright: ignore[reportMissingImports]

    nncf.set_log_level(logging.ERROR)
    model = onnx.load_model_from_string(network)
    try:
        # asymmetric ranges of what is computed, symmetric ones of weights
        model = nncf.quantize(
            model, nncf.Dataset(inputs), preset=nncf.QuantizationPreset.MIXED, subset_size=len(inputs)
        )
    except Exception as error:  # whatever it has
        raise UserError(f"{path}: nncf can't quantise this network: {in_a_line(error)}") from None
    return model.SerializeToString()
