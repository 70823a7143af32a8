"""Compress a checkpoint's fully connected layers, and measure what that costs and gains."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from detkit.checkpoints import checkpoint
from detkit.config import Config
from detkit.errors import UserError
from detkit.models import Detector
from detkit.models.compress import Compressed, compress
from detkit.runtime.device import autocast, choose_device, resolve_amp
from detkit.structures import Images, Predictions, Proposals

ROWS = 300  # regions that a layer is timed on: Faster R-CNN's number of proposals
ROUNDS = 7
REGIONS = 16  # of the image on which outputs are compared, for detectors that take proposals
SEED = 0


@dataclass(frozen=True)
class LayerResult:
    """One layer. parameters, seconds (for ROWS rows, the fastest of ROUNDS): before and after."""

    layer: Compressed
    parameters: tuple[int, int]
    seconds: tuple[float, float]


@dataclass(frozen=True)
class SVDResult:
    """What `export_svd` measured.

    parameters: of all of the detector, before and after. score, box: largest differences of the predictions for a
    random image, in float32, boxes in pixels of its `size` (height, width). amp: number format of the timings.
    """

    layers: tuple[LayerResult, ...]
    parameters: tuple[int, int]
    score: float
    box: float
    size: tuple[int, int]
    amp: str


def load_compressible(path: str | Path) -> tuple[Detector, Config, int]:
    """Read a checkpoint; return its detector, on the CPU, config and iteration.

    Raises UserError, in one line, unless the file is the checkpoint of a detector with a region head.
    """
    content = checkpoint.load(path)
    detector, config = checkpoint.build(content, path)
    if not detector.supports_svd:
        raise UserError(f"{path}: {config.model.name} has no region head; --svd is for detectors that have one")
    return detector.eval(), config, content["iteration"]


def export_svd(path: str | Path, out: str | Path, ranks: Mapping[str, int]) -> SVDResult:
    """Write checkpoint `path` with truncated SVDs in place of fully connected layers to `out` (see ops/svd.py).

    ranks: layer (see models/compress.py): rank. The new config says so in `model.svd`; the metrics, which were those
    of the full layers, are left out. Raises UserError, in one line, before anything is written: no checkpoint of a
    region detector, an unknown layer, a rank that it cannot have, `out` exists already.
    """
    if Path(out).exists():
        raise UserError(f"{out} exists already; remove it, or give another --out")
    detector, config, iteration = load_compressible(path)
    device = choose_device("cpu")
    images = _random_images(detector)
    with torch.inference_mode():
        before, parameters = detector.predict(images), _size(detector)
        compressed = compress(detector, ranks)
        after = detector.predict(images)
        score, box = _difference(before, after)
        amp = resolve_amp(device, config.train.amp)
        layers = tuple(
            LayerResult(one, (_size(one.before), _size(one.after)), _race(one, device, amp)) for one in compressed
        )
    config.model.svd |= {one.name: one.rank for one in compressed}
    checkpoint.save(out, detector, config, iteration=iteration)
    height, width = images.pixels.shape[-2:]
    return SVDResult(layers, (parameters, _size(detector)), score, box, (height, width), amp)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _random_images(detector: Detector) -> Images:
    """Return one image of noise, with regions where the detector takes them."""
    random = torch.Generator().manual_seed(SEED)
    size = torch.tensor([detector.input.fit(300, 400)])
    pixels = torch.randint(256, (1, 3, *size[0].tolist()), generator=random, dtype=torch.uint8)
    low = torch.rand(REGIONS, 2, generator=random) * 0.7
    corners = torch.cat((low, low + 0.1 + 0.2 * torch.rand(REGIONS, 2, generator=random)), 1)
    proposals = Proposals.pad([corners * size.flip(1).repeat(1, 2)]) if detector.takes_proposals else None
    return Images(pixels, size, size, ("random",), proposals)


def _difference(before: Predictions, after: Predictions) -> tuple[float, float]:
    """Return the largest difference of scores and of boxes, without padding."""
    valid = before.scores.isfinite()
    scores = (before.scores - after.scores)[valid].abs()
    boxes = (before.boxes - after.boxes).abs()
    boxes = boxes[valid.any(-1)] if boxes.ndim == 3 else boxes[valid]
    return tuple(float(values.max()) if values.numel() else 0.0 for values in (scores, boxes))  # pyright: ignore


def _race(one: Compressed, device: torch.device, amp: str) -> tuple[float, float]:
    """Return the fastest times of the layer before and after, timed in turn, so that noise meets both alike."""
    rows = torch.rand(ROWS, one.before.in_features, generator=torch.Generator().manual_seed(SEED))
    with autocast(device, amp):
        times = [(_seconds(one.before, rows), _seconds(one.after, rows)) for _ in range(ROUNDS)]
    before, after = (min(column) for column in zip(*times))
    return before, after


def _seconds(layer: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> float:
    start = time.perf_counter()
    layer(rows)
    return time.perf_counter() - start
