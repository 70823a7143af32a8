"""Compress a checkpoint's fully connected layers, and measure what that costs and gains."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from timeit import timeit

import torch

from detkit.backbones.describe import count_parameters
from detkit.checkpoints import checkpoint
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


def export_svd(path: str | Path, out: str | Path, ranks: Mapping[str, int]) -> SVDResult:
    """Write checkpoint `path` with truncated SVDs in place of fully connected layers to `out` (see ops/svd.py).

    ranks: layer (see models/compress.py): rank. The new config says so in `model.svd`; the metrics, which were those
    of the full layers, are left out. Raises UserError, in one line, before anything is written: no checkpoint of a
    detector with a region head, an unknown layer, a rank that it cannot have, `out` exists already.
    """
    if Path(out).exists():
        raise UserError(f"{out} exists already; remove it, or give another --out")
    content = checkpoint.load(path)
    detector, config = checkpoint.build(content, path)
    if not detector.supports_svd:
        raise UserError(f"{path}: {config.model.name} has no region head; --svd is for detectors that have one")
    device = choose_device("cpu")
    images = _random_images(detector.eval())
    with torch.inference_mode():
        before, parameters = detector.predict(images), count_parameters(detector)
        compressed = compress(detector, ranks)
        after = detector.predict(images)
        score, box = _difference(before, after)
        amp = resolve_amp(device, config.train.amp)
        layers = tuple(
            LayerResult(one, (count_parameters(one.before), count_parameters(one.after)), _race(one, device, amp))
            for one in compressed
        )
    config.model.svd |= {one.name: one.after.rank for one in compressed}
    checkpoint.save(out, detector, config, iteration=content["iteration"], best_scores=detector.best_scores)
    height, width = images.pixels.shape[-2:]
    return SVDResult(layers, (parameters, count_parameters(detector)), score, box, (height, width), amp)


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
        times = [
            [timeit(lambda layer=layer: layer(rows), number=1) for layer in (one.before, one.after)]
            for _ in range(ROUNDS)
        ]
    before, after = (min(column) for column in zip(*times))
    return before, after
