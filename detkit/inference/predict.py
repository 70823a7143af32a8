"""Detection on images and frames: the one path of `detkit detect` and of `detector.detect(source)`.

Images are decoded and resized (by the test loader's own transform) in a few threads, one batch ahead of the network,
so that a folder or video of any length needs the memory of a few batches.
"""

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from detkit.config import Config
from detkit.data.batch import make_batch
from detkit.data.transforms import Transform, build_test
from detkit.errors import UserError
from detkit.inference.evaluate import detect_batch
from detkit.inference.images import ImageSource, Source, find_images, origin, read_pixels
from detkit.inference.results import ImageDetections
from detkit.inference.thresholds import score_thresholds
from detkit.models import Detector
from detkit.proposals.methods import Method, find_method
from detkit.runtime.stopwatch import Timed, untimed
from detkit.structures import Detections

T = TypeVar("T")

BATCH = 8
READERS = 4  # threads that decode
STEPS = ("decoding", "proposals", "resizing", "network", "post-processing")  # of an image, as `timed` is told them


@dataclass(frozen=True)
class _Prepared:
    source: ImageSource
    image: np.ndarray
    pixels: np.ndarray
    regions: np.ndarray


def detect_images(
    detector: Detector,
    images: Iterable[ImageSource],
    config: Config,
    *,
    batch: int = BATCH,
    score_thresholds: Tensor | None = None,
    timed: Timed = untimed,
) -> Generator[ImageDetections | UserError]:
    """Detect on each image, in order, `batch` at once, on the detector's device.

    An image that can't be read gives the error that says why. Results keep their pixels.
    config: that of the detector's checkpoint; `config.detect` has the score threshold and NMS, `config.train` the
    number format and memory layout that evaluation uses too. score_thresholds: (C,) a threshold for each class in place
    of its own, see `thresholds.score_thresholds`. timed: takes the time of the steps, see STEPS. Close the iterator if
    you leave it early.
    """
    score_thresholds = None if score_thresholds is None else score_thresholds.to(next(detector.parameters()).device)
    propose = proposal_method(config) if detector.takes_proposals else None
    prepare = partial(_prepare, transform=build_test(detector.input), propose=propose, timed=timed)
    images = iter(images)
    chunks = iter(lambda: list(islice(images, batch)), [])
    with ThreadPoolExecutor(READERS) as pool:
        prepared = (list(pool.map(prepare, chunk)) for chunk in chunks)
        with closing(_one_ahead(prepared)) as batches:
            for items in batches:
                usable = [item for item in items if isinstance(item, _Prepared)]
                found = iter(_detect(detector, usable, config, score_thresholds, timed) if usable else ())
                for item in items:
                    yield _result(item, next(found), detector.classes) if isinstance(item, _Prepared) else item


def stream(
    detector: Detector,
    source: Source | Iterable[Source],
    *,
    score: float | str = 0.5,
    classes: str | Collection[str] | None = None,
    thresholds: Mapping[str, float] | None = None,
    nms: str | None = None,
    flip: bool | None = None,
    scales: Sequence[float] | None = None,
    bgr: bool = False,
    batch: int = BATCH,
    endless: bool = True,
) -> Generator[ImageDetections]:
    """See `Detector.stream`, and `Detector.detect`; endless: whether cameras are allowed."""
    config = detector.experiment or Config(model=detector.config)
    changes = {"nms": nms, "flip": flip, "scales": None if scales is None else [*scales]}
    settings = replace(config.detect, **{key: value for key, value in changes.items() if value is not None})
    config = replace(config, detect=settings)
    limits = score_thresholds(detector, score, classes, thresholds)
    images, videos = find_images(source, bgr)
    for camera in (video for video in videos if video.is_camera):
        if not endless:
            raise UserError(f"{camera} has no end, so its detections make no list; detector.stream yields them")
        batch = 1  # its image is shown at once, not when a batch is full
    return _raised(detect_images(detector, images, config, batch=batch, score_thresholds=limits))


def _raised(results: Generator[ImageDetections | UserError]) -> Generator[ImageDetections]:
    with closing(results):
        for result in results:
            if isinstance(result, UserError):
                raise result
            yield result


def proposal_method(config: Config) -> Method:
    """How regions are proposed on images that no store knows: as many as in training."""
    settings = {"mode": config.detect.proposals, "seed": 0, "max_side": config.detect.proposal_side}
    method = find_method("selective_search", settings)
    return lambda image: method(image)[: config.data.proposal_count]


def _prepare(source: ImageSource, transform: Transform, propose: Method | None, timed: Timed) -> _Prepared | UserError:
    try:
        with timed("decoding"):
            image = read_pixels(source)
    except UserError as error:
        return error
    regions = np.zeros((0, 4), np.float32)
    if propose is not None:
        with timed("proposals"):
            regions = propose(image)
    with timed("resizing"):
        pixels, regions, _ = transform(image, regions, objects=0)
    return _Prepared(source, image, pixels, regions)


def _result(item: _Prepared, found: Detections, classes: tuple[str, ...]) -> ImageDetections:
    """The detections of one image, a batch of one without padding."""
    boxes, scores, labels = found.image(0)
    extra = {name: value[0] for name, value in found.extra.items()}
    height, width = item.image.shape[:2]
    keys = {"extra": extra, "kept": item.image, **origin(item.source)}
    return ImageDetections(boxes, scores, labels, classes, (height, width), **keys)


def _detect(
    detector: Detector, items: list[_Prepared], config: Config, score_thresholds: Tensor | None, timed: Timed
) -> Iterator[Detections]:
    """The network on one batch."""
    regions = [item.regions for item in items] if detector.takes_proposals else None
    original = [item.image.shape[:2] for item in items]
    with timed("resizing"):
        images = make_batch([item.pixels for item in items], original, regions=regions)
    device = next(detector.parameters()).device
    if training := detector.training:  # since telling every layer takes as long as a small network's post-processing
        detector.eval()
    with torch.inference_mode():
        detections = detect_batch(detector, images, config, device, score_thresholds, timed)
    if training:
        detector.train()
    # waits for the device, once a batch: its readers draw and print next
    yield from detections.to("cpu").unpad()


def _one_ahead(iterator: Iterator[T]) -> Generator[T]:
    """Run an iterator in another thread, one item ahead of whoever takes them."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        upcoming = thread.submit(next, iterator, end)
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, iterator, end)
            yield item  # pyright: ignore[reportReturnType]
