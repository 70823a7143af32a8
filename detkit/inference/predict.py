"""Detection on images and frames: the one path of `detkit detect` and of `detector.detect(source)`.

Images are decoded and resized (by the test loader's own transform) in a few threads, one batch ahead of the network,
so that a folder or video of any length needs the memory of a few batches.
"""

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from detkit.config import Config
from detkit.data.batch import make_batch
from detkit.data.image_file import decode_image
from detkit.data.transforms import Transform, build_test
from detkit.errors import UserError
from detkit.inference.evaluate import detect_batch
from detkit.inference.sources import Video, VideoReader, find_sources
from detkit.inference.thresholds import score_thresholds
from detkit.models import Detector
from detkit.proposals.methods import Method, find_method
from detkit.structures import Detections

T = TypeVar("T")
ImageArray = np.ndarray | Tensor  # (H, W, 3) array or (3, H, W) tensor, RGB uint8
Source = str | Path | int | ImageArray

BATCH = 8
READERS = 4  # threads that decode


@dataclass(frozen=True)
class DetectedImage:
    """One image and its detections.

    image: (H, W, 3) RGB uint8, as read. detections: of this one image, on the CPU, without padding: boxes (1, D, 4)
    in its pixels.
    """

    image: np.ndarray
    detections: Detections


@dataclass(frozen=True)
class _Prepared:
    image: np.ndarray
    pixels: np.ndarray
    regions: np.ndarray


def detect_images(
    detector: Detector,
    images: Iterable[ImageArray | Path],
    config: Config,
    *,
    batch: int = BATCH,
    score_thresholds: Tensor | None = None,
) -> Generator[DetectedImage | UserError]:
    """Detect on each image or image file, in order, `batch` at once, on the detector's device.

    An image that can't be read gives the error that says why.
    config: that of the detector's checkpoint; `config.detect` has the score threshold and NMS, `config.train` the
    number format and memory layout that evaluation uses too. score_thresholds: (C,) a threshold for each class in place
    of its own, see `thresholds.score_thresholds`. Close the iterator if you leave it early.
    """
    score_thresholds = None if score_thresholds is None else score_thresholds.to(next(detector.parameters()).device)
    propose = proposal_method(config) if detector.takes_proposals else None
    prepare = partial(_prepare, transform=build_test(detector.input), propose=propose)
    images = iter(images)
    chunks = iter(lambda: list(islice(images, batch)), [])
    with ThreadPoolExecutor(READERS) as pool:
        prepared = (list(pool.map(prepare, chunk)) for chunk in chunks)
        with closing(_one_ahead(prepared)) as batches:
            for items in batches:
                usable = [item for item in items if isinstance(item, _Prepared)]
                detections = iter(_detect(detector, usable, config, score_thresholds) if usable else ())
                for item in items:
                    yield DetectedImage(item.image, next(detections)) if isinstance(item, _Prepared) else item


def detect(
    detector: Detector,
    source: Source | Iterable[Source],
    *,
    score: float,
    classes: Collection[str] | None,
    thresholds: Mapping[str, float] | None,
    nms: str | None,
    flip: bool | None,
    scales: Sequence[float] | None,
    batch: int,
) -> list[Detections]:
    """See `Detector.detect`."""
    config = detector.experiment or Config(model=detector.config)
    changes = {"nms": nms, "flip": flip, "scales": None if scales is None else [*scales]}
    settings = replace(config.detect, **{key: value for key, value in changes.items() if value is not None})
    config = replace(config, detect=settings)
    limits = score_thresholds(detector, score, classes, thresholds)
    sources: list[Source] = [source] if isinstance(source, Source) else [*source]
    detections = []
    with closing(detect_images(detector, _images(sources), config, batch=batch, score_thresholds=limits)) as results:
        for result in results:
            if isinstance(result, UserError):
                raise result
            detections.append(result.detections)
    return detections


def _images(sources: list[Source]) -> Iterator[ImageArray | Path]:
    """Images and the frames of videos, one by one. All names are looked up before the first is read."""
    opened: list[Path | Video | ImageArray] = []
    for source in sources:
        opened += find_sources([source]) if isinstance(source, str | Path | int) else [source]
    for item in opened:
        if isinstance(item, Video) and item.is_camera:
            raise UserError(f"{item} has no end, so its detections make no list; detkit detect CHECKPOINT {item.place}")
    return chain.from_iterable(_frames(item) if isinstance(item, Video) else [item] for item in opened)


def _frames(video: Video) -> Iterator[np.ndarray]:
    with VideoReader(video) as frames:
        yield from frames


def proposal_method(config: Config) -> Method:
    """How regions are proposed on images that no store knows: as many as in training."""
    settings = {"mode": config.detect.proposals, "seed": 0, "max_side": config.detect.proposal_side}
    method = find_method("selective_search", settings)
    return lambda image: method(image)[: config.data.proposal_count]


def _prepare(source: ImageArray | Path, transform: Transform, propose: Method | None) -> _Prepared | UserError:
    try:
        image = decode_image(source) if isinstance(source, Path) else _as_array(source)
    except UserError as error:
        return error
    regions = np.zeros((0, 4), np.float32) if propose is None else propose(image)
    pixels, regions, _ = transform(image, regions, objects=0)
    return _Prepared(image, pixels, regions)


def _as_array(source: ImageArray) -> np.ndarray:
    image = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
    if image.ndim == 3 and isinstance(source, Tensor):
        image = image.transpose(1, 2, 0)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise UserError(
            "an image is an RGB uint8 array (H, W, 3) or tensor (3, H, W); "
            f"got {type(source).__name__} of {source.dtype} {tuple(source.shape)}"
        )
    return np.ascontiguousarray(image)


def _detect(
    detector: Detector, items: list[_Prepared], config: Config, score_thresholds: Tensor | None
) -> Iterator[Detections]:
    """The network on one batch."""
    regions = [item.regions for item in items] if detector.takes_proposals else None
    original = [item.image.shape[:2] for item in items]
    images = make_batch([item.pixels for item in items], original, regions=regions)
    training = detector.training
    detector.eval()
    with torch.inference_mode():
        detections = detect_batch(detector, images, config, next(detector.parameters()).device, score_thresholds)
    detector.train(training)
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
