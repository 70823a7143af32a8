"""Reading images."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detkit.errors import UserError
from detkit.limits import PIXELS, limit

if TYPE_CHECKING:
    from PIL import Image

JPEG = b"\xff\xd8"
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".mpo", ".jp2", ".ppm", ".pgm")
)
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
MAX_PIXELS = int(limit(PIXELS))  # of an image: some KiB of a file may else take GiB; decoding takes 10 bytes a pixel
STRIP = 1 << 20  # pixels that are made opaque at once
OPAQUE = (JPEG, b"BM", b"P5", b"P6")  # first bytes of the formats that cannot be transparent

# read when cv2 is imported, so it comes before that
os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_PIXELS)


def decode_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image as (H, W, 3) RGB uint8: upright by its EXIF; grey, palette, CMYK and 16 bit converted; what is
    transparent shows white, as in a viewer; the first image of an animation.

    size: (width, height) that an annotation states: where it fits the stored pixels and not the upright image, the
    EXIF orientation is left unapplied. Raises UserError, naming the file, where it is missing, truncated, no image, or
    has more pixels than DETKIT_MAX_PIXELS.
    """
    import cv2

    try:
        data = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise UserError(f"no image {path}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    pixels = _decode(data, cv2.IMREAD_COLOR_RGB)
    if pixels is None or not _complete(data):
        raise UserError(f"{path}: {_fault(data)}")
    upright = True
    if size is not None and pixels.shape[1::-1] != size and pixels.shape[:2] == size:
        stored = _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if stored is not None and stored.shape[1::-1] == size:
            pixels, upright = stored, False
    alpha = None if data[:2].tobytes() in OPAQUE else _alpha(data, upright)
    if alpha is None or alpha.shape != pixels.shape[:2]:
        return pixels
    rows = max(1, STRIP // pixels.shape[1])
    for top in range(0, len(pixels), rows):  # since numbers of four bytes of all pixels take GB
        part = slice(top, top + rows)
        weight = alpha[part, :, None].astype(np.float32) / 255
        pixels[part] = np.rint(pixels[part] * weight + 255 * (1 - weight))
    return pixels


def image_header(path: Path) -> tuple[int, int, int] | None:
    """Return stored width and height and the EXIF orientation of an image, None where it cannot be read.

    Reads the header alone, where Pillow knows the format.
    """
    try:
        with _opened(path) as image:
            # of a PNG without it in front, Pillow would decode all to look for EXIF behind the pixels
            tagged = image.format != "PNG" or "exif" in image.info
            return *image.size, int(image.getexif().get(0x0112, 1)) if tagged else 1
    except Exception:  # Pillow raises whatever its plugins raise
        try:
            height, width = decode_image(path).shape[:2]
        except UserError:
            return None
        return width, height, 1


def image_size(path: Path) -> tuple[int, int] | None:
    """Return (width, height) of the upright image, None where it cannot be read."""
    header = image_header(path)
    if header is None:
        return None
    width, height, orientation = header
    return (height, width) if orientation in TURNED else (width, height)


def _fault(data: np.ndarray) -> str:
    """Why an image cannot be read."""
    if not data.size:
        return "empty file"
    with suppress(Exception):  # Pillow raises whatever its plugins raise
        with _opened(data) as image:
            pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            return f"{pixels:,} pixels, the limit is {MAX_PIXELS:,}; if it is to be trusted, set {PIXELS}={pixels}"
    return "corrupt or truncated image"


def _alpha(data: np.ndarray, upright: bool) -> np.ndarray | None:
    """(H, W) uint8 opacity of an image, turned by its EXIF where it is to be upright, None where all is opaque; reads
    the header alone to know that."""
    from PIL import ImageOps

    try:
        with _opened(data) as image:
            if not image.has_transparency_data:
                return None
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            return np.asarray((image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A"))
    except Exception:
        return None  # what cv2 reads and Pillow doesn't (or not at this size) is shown as cv2 reads it


@contextmanager
def _opened(source: Path | np.ndarray) -> Iterator["Image.Image"]:
    """Open a file or its bytes in Pillow, whose own limit on pixels does not count beside DETKIT_MAX_PIXELS."""
    from PIL import Image

    pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        image = Image.open(source if isinstance(source, Path) else BytesIO(source.tobytes()))
    finally:
        Image.MAX_IMAGE_PIXELS = pillows
    with image:
        yield image


def _decode(data: np.ndarray, flags: int) -> np.ndarray | None:
    import cv2

    try:
        return cv2.imdecode(data, flags) if data.size else None
    except cv2.error:
        return None


def _complete(data: np.ndarray) -> bool:
    """Whether a JPEG was not cut off: cv2 fills what is missing with grey and only warns."""
    head, tail = data[:2].tobytes(), data[-2:].tobytes()
    if head != JPEG or tail == b"\xff\xd9":
        return True
    # No end marker at the very end: cut off, or followed by what a camera or editor appended. Pillow tells them apart.
    try:
        with _opened(data) as image:
            image.load()
    except Exception:
        return False
    return True
