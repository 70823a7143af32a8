"""Images to detect on, one by one: of files, videos, cameras and web addresses, and those in memory."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from detkit.data.image_file import decode_image, from_pillow
from detkit.errors import UserError
from detkit.inference.sources import Video, VideoReader, find_sources
from detkit.inference.web import SCHEMES, Address, fetch_image

Source = str | Path | int | np.ndarray | Tensor | Image
SOURCE_TYPES = (str, Path, int, np.ndarray, Tensor, Image)


@dataclass(frozen=True)
class Frame:
    """An image of a video. pixels: (H, W, 3) RGB uint8. number: from 0. seconds: after the first frame."""

    video: Video
    pixels: np.ndarray
    number: int
    seconds: float


ImageSource = Path | Address | Frame | np.ndarray


def read_pixels(source: ImageSource) -> np.ndarray:
    """Return an image's pixels, (H, W, 3) RGB uint8; UserError, naming it, where it can't be read."""
    if isinstance(source, Path):
        return decode_image(source)
    if isinstance(source, Address):
        return fetch_image(source)
    return source.pixels if isinstance(source, Frame) else source


def origin(source: ImageSource) -> dict[str, Any]:
    """Return what ImageDetections tell of where an image is from: path, url, frame and seconds, those that it has."""
    if isinstance(source, Frame):
        path = None if source.video.is_camera else Path(str(source.video))
        return {"path": path, "frame": source.number, "seconds": source.seconds}
    if isinstance(source, Path):
        return {"path": source}
    return {"url": source.url} if isinstance(source, Address) else {}


def find_images(source: Source | Iterable[Source], bgr: bool) -> tuple[Iterator[ImageSource], list[Video]]:
    """Return the images that a source stands for, and the videos and cameras among its names.

    All names of a list are looked up before its first image is read; an iterator is asked for one item at a time. bgr:
    whether arrays and tensors have their channels in the order blue, green, red.
    Raises UserError for a name that stands for nothing, and on the way for an array that is no image.
    """
    if isinstance(source, Iterator):
        return chain.from_iterable(_opened(item, bgr) for one in source for item in _found(one)), []
    items = [item for one in ([source] if isinstance(source, SOURCE_TYPES) else source) for item in _found(one)]
    videos = [item for item in items if isinstance(item, Video)]
    return chain.from_iterable(_opened(item, bgr) for item in items), videos


def _found(source: Source) -> Sequence[Path | Video | Address | np.ndarray | Tensor | Image]:
    if isinstance(source, str) and source.lower().startswith(SCHEMES):
        return [Address(source)]
    return find_sources([source]) if isinstance(source, str | Path | int) else [source]


def _opened(item: Path | Video | Address | np.ndarray | Tensor | Image, bgr: bool) -> Iterator[ImageSource]:
    if isinstance(item, Video):
        return frames(item)
    return iter([item]) if isinstance(item, Path | Address) else _in_memory(item, bgr)


def frames(video: Video) -> Iterator[Frame]:
    """Yield the frames of a video or camera."""
    with VideoReader(video) as reader:
        for number, (pixels, seconds) in enumerate(reader.timed()):
            yield Frame(video, pixels, number, seconds)


def _in_memory(source: np.ndarray | Tensor | Image, bgr: bool) -> Iterator[np.ndarray]:
    """Yield an image, or those of a batch, as arrays (H, W, 3) RGB uint8."""
    if isinstance(source, Image):
        yield from_pillow(source)
        return
    pixels = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
    if isinstance(source, Tensor) and pixels.ndim in (3, 4):
        pixels = np.moveaxis(pixels, -3, -1)
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.ndim not in (3, 4)
        or pixels.shape[-1] != 3
        or pixels.dtype != np.uint8
        or not pixels.size
    ):
        kind = type(source).__name__
        shape = f" of {source.dtype} {tuple(source.shape)}" if isinstance(source, np.ndarray | Tensor) else ""
        raise UserError(
            "an image is an RGB uint8 array (H, W, 3) or tensor (3, H, W), or a batch of such, or one of Pillow; "
            f"got {kind}{shape}"
        )
    pixels = np.ascontiguousarray(pixels[..., ::-1] if bgr else pixels)
    yield from pixels if pixels.ndim == 4 else [pixels]
