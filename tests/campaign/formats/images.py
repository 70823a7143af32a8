"""Images."""

import struct
from io import BytesIO
from random import Random

import cv2
import numpy as np
from PIL import Image

from detkit.data.image_file import decode_image, image_size
from detkit.errors import UserError
from tests.campaign.commands import Broken, run
from tests.campaign.formats.base import Files, Format
from tests.campaign.formats.datasets import ROOT, prepare_voc
from tests.campaign.mutations import damage

SIDES = (0, 1, 13_000, 65_535, 2**20, 2**31 - 1)
PNG_SIZE = slice(16, 24)  # width and height in its header


def prepare_images() -> list[bytes]:
    """A VOC data set whose image `b` is what is drawn; returns images in all formats and modes."""
    prepare_voc()
    (ROOT / "JPEGImages/b.jpg").unlink()
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8), (60, 40))
    image = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6
    wide = image.convert("L").convert("I;16")
    ways = [
        *((image, "JPEG", {}), (image, "JPEG", {"progressive": True, "exif": turned}), (image, "BMP", {})),
        *((image, "WEBP", {}), (image, "TIFF", {}), (image, "TIFF", {"compression": "tiff_lzw"}), (image, "GIF", {})),
        *((image, "PPM", {}), (image, "PNG", {}), (wide, "PNG", {}), (image.convert("CMYK"), "JPEG", {})),
        *((image.convert(mode), "PNG", {"exif": turned}) for mode in ("P", "LA", "RGBA", "L", "1")),
    ]
    seeds = []
    for made, kind, options in ways:
        buffer = BytesIO()
        made.save(buffer, kind, **options)
        seeds.append(buffer.getvalue())
    return seeds


def draw_image(random: Random, seeds: list[bytes]) -> Files:
    """Damage an image, or state another size in it; the name may be that of another format."""
    content = damage(random, random.choice(seeds))
    if content.startswith(b"\x89PNG") and random.random() < 0.3 and len(content) > PNG_SIZE.stop:
        size = struct.pack(">II", random.choice(SIDES), random.choice(SIDES))
        content = content[: PNG_SIZE.start] + size + content[PNG_SIZE.stop :]
    return {f"{ROOT}/JPEGImages/b.{random.choice(('jpg', 'png'))}": content}


def read_image() -> None:
    """Check the data set and decode the image: `check` and reading agree on it."""
    status = run("dataset", "check", "--root", ROOT)
    for path in sorted((ROOT / "JPEGImages").iterdir()):
        size = image_size(path)
        try:
            pixels = decode_image(path)
        except UserError:
            if status == 0:
                raise Broken(f"`check` finds nothing, and {path} cannot be read") from None
            continue
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise Broken(f"{path}: pixels {pixels.shape} {pixels.dtype}")
        if size is not None and size != pixels.shape[1::-1]:
            raise Broken(f"{path}: size {size}, and pixels {pixels.shape}")


IMAGE_FORMATS = (Format("image", prepare_images, draw_image, read_image, 8000, 100),)
