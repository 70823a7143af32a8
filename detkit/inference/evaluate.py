"""A detector over a data set: its detections, and their average precision."""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detkit.config import Config
from detkit.data.dataset import DetectionDataset
from detkit.data.given import TorchDataset, as_dataset
from detkit.data.loader import open_proposals, test_loader
from detkit.data.opening import open_dataset, open_split
from detkit.errors import UserError
from detkit.evaluation import METRICS, COCOResult, Result, coco_ap, score
from detkit.inference.fast import run_fast
from detkit.inference.masks import take_masks
from detkit.inference.tta import predict_views
from detkit.models import Detector, postprocess
from detkit.rle import RLE
from detkit.runtime import distributed
from detkit.runtime.device import autocast, images_to_device, one_thread
from detkit.runtime.stopwatch import Timed, untimed
from detkit.structures import Detections, DetectionSet, Images, Targets


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation. seconds: of reading, network and post-processing, all images, without the metric.

    masks: the result of the masks, always by COCO's rules; None of a detector that finds none.
    """

    result: Result
    detections: DetectionSet
    seconds: float
    masks: COCOResult | None = None

    def metrics(self, **protocol: Any) -> dict[str, Any]:
        """Return what metrics.json holds; `protocol` adds keys such as split and checkpoint."""
        masks = {} if self.masks is None else {"masks": self.masks.to_dict()}
        return {**self.result.to_dict(), **masks, **protocol, "seconds": round(self.seconds, 3)}


def evaluate(
    detector: Detector, dataset: DetectionDataset, config: Config, device: torch.device | None = None
) -> Evaluation:
    """Run a detector over a data set and score it by `config.evaluate.metric`.

    The detector stays in the mode (train or eval) that it was in. Under torchrun each process takes a share of the
    images and all return the same result. device: where the detector is; by default that of its parameters.
    """
    device = device or next(detector.parameters()).device
    loader = test_loader(
        dataset,
        detector.input,
        batch=config.evaluate.batch,
        workers=config.train.workers,
        rank=distributed.rank(),
        world=distributed.world_size(),
        proposals=open_proposals(dataset, config.data),
    )
    start = time.perf_counter()
    distributed.share_buffers(detector)
    detections = detect_dataset(detector, loader, config, device)
    detections = join(distributed.gather(detections), tuple(dataset.ids))
    seconds = time.perf_counter() - start
    truth = dataset.ranked_truth(masks=detector.takes_masks)
    result = score(detections, truth, config.evaluate.metric)
    masks = coco_ap(detections, truth, masks=True) if detector.takes_masks else None
    return Evaluation(result, detections, seconds, masks)


def evaluate_on(
    detector: Detector, data: DetectionDataset | TorchDataset | str | Path | None, split: str, metric: str | None
) -> Result:
    """See `Detector.evaluate`."""
    config = detector.experiment or Config(model=detector.config)
    if metric not in (None, *METRICS, "coco"):
        raise UserError(f"metric {metric!r} is not one of {', '.join(METRICS)}, coco")
    if data is None and detector.experiment is None:
        raise UserError("evaluate: on which data? the root of a data set, since this detector is of no checkpoint")
    if data is None:
        data = open_dataset(config.data, split, detector.classes)
    elif isinstance(data, str | Path):
        data = open_split(data, split, classes=detector.classes)
    else:
        data = as_dataset(data, "data", detector.classes)
    settings = replace(config.evaluate, metric=metric or config.evaluate.metric)
    return evaluate(detector, data, replace(config, evaluate=settings)).result


def detect_dataset(
    detector: Detector, loader: Iterable[tuple[Images, Targets]], config: Config, device: torch.device
) -> DetectionSet:
    """Run a detector over every batch of a loader.

    Detections stay on the device until the end: no waits between, but for their masks.
    """
    batches: list[tuple[Detections, tuple[str, ...]]] = []
    masks: list[RLE] = []
    training = detector.training
    detector.eval()
    with torch.inference_mode():
        for images, _ in loader:
            detections = detect_batch(detector, images, config, device)
            if detector.takes_masks:  # run lengths at once: those of a data set would fill the memory
                detections, found = take_masks(detections, images.original)
                masks += found
            batches.append((detections, images.ids))
    detector.train(training)
    detections = DetectionSet.from_batches(batches, detector.classes)
    return replace(detections, masks=tuple(masks)) if detector.takes_masks else detections


def detect_batch(
    detector: Detector,
    images: Images,
    config: Config,
    device: torch.device,
    score_thresholds: Tensor | None = None,
    timed: Timed = untimed,
) -> Detections:
    """Move a batch to the device, predict, post-process, refine.

    config: `config.train` has the number format and memory layout. score_thresholds: (C,), on the device, see
    `postprocess`. timed: takes the time of `network` and `post-processing`.
    """
    count, fast = len(images), detector.fast
    # the threads of another program still spin, and torch's would wait for them, or they for torch's
    with nullcontext() if detector.backend == "torch" else one_thread():
        images = images_to_device(images if fast is None else fast.filled(images), device, config.train.channels_last)
        with run_fast(detector, device, config.train.amp):
            with timed("network"), autocast(device, config.train.amp):
                predictions = predict_views(detector, images, config.detect)
            with timed("post-processing"):
                detections, _ = postprocess(predictions, images, config.detect, score_thresholds)
            with timed("network"), autocast(device, config.train.amp):
                detections = detector.refine(images, detections, predictions.features)
    return detections if count == len(images) else detections.part(slice(count))


def join(shares: list[DetectionSet], ids: tuple[str, ...]) -> DetectionSet:
    """Merge the shares of several processes into one set over `ids`, in the order that one process would give."""
    index_of = {name: index for index, name in enumerate(ids)}
    renumbered = []
    for share in shares:
        index = torch.tensor([index_of[name] for name in share.ids], dtype=torch.int64)
        renumbered.append(replace(share, image=index[share.image], ids=ids))
    joined = DetectionSet.cat(renumbered)
    return joined.part(torch.argsort(joined.image, stable=True))
