"""Reading images."""

import os
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np

from detkit.errors import UserError

JPEG = b"\xff\xd8"
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".mpo", ".jp2", ".ppm", ".pgm")
)
TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
MAX_PIXELS = 178_956_970  # of an image: Pillow's limit, now OpenCV's too, which else takes GiB for a file of some KiB
OPAQUE = (JPEG, b"BM", b"P5", b"P6")  # first bytes of the formats that cannot be transparent

# read when cv2 is imported, so it comes before that
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))


def decode_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image as (H, W, 3) RGB uint8: upright by its EXIF; grey, palette, CMYK and 16 bit converted; what is
    transparent shows white, as in a viewer; the first image of an animation.

    size: (width, height) that an annotation states: where it fits the stored pixels and not the upright image, the
    EXIF orientation is left unapplied. Raises UserError, naming the file, where it is missing, truncated or no image.
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
    weight = alpha[..., None].astype(np.float32) / 255
    return np.rint(pixels * weight + 255 * (1 - weight)).astype(np.uint8)


def image_header(path: Path) -> tuple[int, int, int] | None:
    """Return stored width and height and the EXIF orientation of an image, None where it cannot be read.

    Reads the header alone, where Pillow knows the format.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
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
    from PIL import Image

    if not data.size:
        return "empty file"
    with suppress(Exception):  # Pillow raises whatever its plugins raise
        try:
            Image.open(BytesIO(data.tobytes())).close()
        except Image.DecompressionBombError:
            return f"too large, above {MAX_PIXELS:,} pixels"
    return "corrupt or truncated image"


def _alpha(data: np.ndarray, upright: bool) -> np.ndarray | None:
    """(H, W) uint8 opacity of an image, turned by its EXIF where it is to be upright, None where all is opaque; reads
    the header alone to know that."""
    from PIL import Image, ImageOps

    try:
        with Image.open(BytesIO(data.tobytes())) as image:
            if not image.has_transparency_data:
                return None
            turned = ImageOps.exif_transpose(image) if upright else image
            return np.asarray(turned.convert("RGBA").getchannel("A"))
    except Exception:
        return None  # what cv2 reads and Pillow doesn't (or not at this size) is shown as cv2 reads it


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
    from PIL import Image

    try:
        with Image.open(BytesIO(data.tobytes())) as image:
            image.load()
    except Exception:
        return False
    return True
