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
PNG = b"\x89PNG\r\n\x1a\n"
IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".webp", ".tif", ".tiff", ".jp2", ".avif"),
        *(".ppm", ".pgm", ".pnm"),
    )
)
MAX_PIXELS = int(limit(PIXELS))  # of an image: some KiB of a file may else take GiB; decoding takes 10 bytes a pixel
STRIP = 1 << 20  # pixels that are made opaque at once
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: beyond 4 GB
OPAQUE = (JPEG, b"BM", b"P5", b"P6")  # first bytes of the formats that cannot be transparent
# first bytes of formats -> what is in the SEARCHED first bytes of their files where they have an orientation
SEARCHED = 1 << 16
MARKS = {JPEG: (b"Exif\0", b"/xap/"), b"\x89P": (b"eXIf",), b"BM": (), b"P5": (), b"P6": ()}

# read when cv2 is imported, so it comes before that
os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_PIXELS)


def decode_image(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) RGB uint8: upright, of the size that `image_size` says; grey, palette, CMYK and 16 bit
    converted; what is transparent shows white, as in a viewer; the first image of an animation.

    Raises UserError, naming the file, where it is missing, truncated, no image, or has more pixels than
    DETKIT_MAX_PIXELS.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise UserError(f"no image {path}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return decode_bytes(data, path)


def decode_bytes(data: np.ndarray, name: str | Path) -> np.ndarray:
    """`decode_image` of what a file holds, (n,) uint8; name: for the UserError."""
    import cv2

    pixels = _decode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or not _complete(data):
        raise UserError(f"{name}: {_fault(data)}")
    header = _header_of(data)
    if header is not None and header[2] != 1:
        # cv2 turns a TIFF in ways of its own
        is_tiff = data[:4].tobytes() in TIFF
        pixels = _turn(pixels, header[2]) if not is_tiff else _pillow_rgb(data, pixels)
    alpha = None if data[:2].tobytes() in OPAQUE else _alpha(data)
    return pixels if alpha is None or alpha.shape != pixels.shape[:2] else _on_white(pixels, alpha)


def from_pillow(image: "Image.Image") -> np.ndarray:
    """Return an image of Pillow as `decode_image` reads its file, (H, W, 3) RGB uint8; UserError where it can't be."""
    from PIL import ImageOps

    try:
        image.load()  # where a TIFF is turned, so it comes before what turns the others
        image = ImageOps.exif_transpose(image)
    except OSError as error:  # of its file, which is read only now
        raise UserError(f"{getattr(image, 'filename', None) or 'an image of Pillow'}: {error}") from None
    if image.mode.startswith("I;16"):  # which Pillow would cut off at 255
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, 2)
    if image.mode in ("I", "F"):
        raise UserError(f"an image of Pillow in mode {image.mode}, whose white is not known; convert it to RGB")
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    pixels = np.array(image.convert("RGBA"))
    return _on_white(pixels[..., :3], pixels[..., 3])


def _on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3), changed in place, with white behind it; alpha: its opacity, (H, W)."""
    rows = max(1, STRIP // pixels.shape[1])
    for top in range(0, len(pixels), rows):  # since numbers of four bytes of all pixels take GB
        part = slice(top, top + rows)
        weight = alpha[part, :, None].astype(np.float32) / 255
        pixels[part] = np.rint(pixels[part] * weight + 255 * (1 - weight))
    return pixels


def image_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return (width, height) of the upright image, None where it cannot be read.

    Reads the header alone, where Pillow knows the format.
    """
    header = _header(path)
    if header is None:
        try:
            height, width = decode_image(Path(path)).shape[:2]
        except UserError:
            return None
        return width, height
    width, height, orientation = header
    return (height, width) if orientation in TURNED else (width, height)


TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels (H, W, 3) upright by their EXIF orientation."""
    import cv2

    if orientation in TURNED:
        pixels = cv2.transpose(pixels)
    if orientation in (2, 3, 6, 7):
        pixels = cv2.flip(pixels, 1)  # left and right
    if orientation in (3, 4, 7, 8):
        pixels = cv2.flip(pixels, 0)
    return pixels


def _header_of(data: np.ndarray) -> tuple[int, int, int] | None:
    """See `_header`; of a file without a mark of EXIF and XMP, which is upright, nothing need be read."""
    head = data[:SEARCHED].tobytes()
    marks = MARKS.get(head[:2])
    if marks is not None and not any(mark in head for mark in marks):
        return None
    return _header(data)


def _header(file: str | os.PathLike[str] | np.ndarray) -> tuple[int, int, int] | None:
    """Return stored width and height of an image and the orientation that its EXIF says, 1 where it says none; None
    where Pillow does not know the format."""
    try:
        with _opened(file) as image:
            # of a PNG without it in front, Pillow would decode all to look for EXIF behind the pixels
            tagged = image.format != "PNG" or "exif" in image.info
            orientation = int(image.getexif().get(0x0112, 1)) if tagged else 1
            width, height = image.size
            if image.format == "TIFF":  # of which Pillow says the size when it is upright
                width, height = (int(image.tag_v2[tag]) for tag in (256, 257))  # type: ignore[attr-defined]
            return width, height, orientation
    except Exception:  # Pillow raises whatever its plugins raise
        return None


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


def _pillow_rgb(data: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """An upright image as Pillow reads it, (H, W, 3) RGB uint8."""
    from PIL import ImageOps

    try:
        with _opened(data) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception:  # Pillow raises whatever its plugins raise
        return otherwise


def _alpha(data: np.ndarray) -> np.ndarray | None:
    """(H, W) uint8 opacity of the upright image, None where all is opaque; reads the header alone to know that."""
    from PIL import ImageOps

    try:
        with _opened(data) as image:
            if not image.has_transparency_data:
                return None
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray((image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A"))
    except Exception:
        return None  # what cv2 reads and Pillow doesn't (or not at this size) is shown as cv2 reads it


@contextmanager
def _opened(source: str | os.PathLike[str] | np.ndarray) -> Iterator["Image.Image"]:
    """Open a file or its bytes in Pillow, whose own limit on pixels does not count beside DETKIT_MAX_PIXELS."""
    from PIL import Image

    pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        image = Image.open(BytesIO(source.tobytes()) if isinstance(source, np.ndarray) else source)
    finally:
        Image.MAX_IMAGE_PIXELS = pillows
    with image:
        yield image


def _decode(data: np.ndarray, flags: int) -> np.ndarray | None:
    import cv2

    if not data.size or not _chunks_fit(data):
        return None
    try:
        return cv2.imdecode(data, flags)
    except cv2.error:
        return None


def _chunks_fit(data: np.ndarray) -> bool:
    """Whether no chunk of a PNG states more bytes than follow it: cv2 takes up to 2 GiB for one before it reads it."""
    if data[:8].tobytes() != PNG:
        return True
    at, kind = 8, b""
    while at + 8 <= len(data) and kind != b"IEND":
        head = data[at : at + 8].tobytes()
        kind = head[4:]
        at += 12 + int.from_bytes(head[:4])
    return at <= len(data)


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
