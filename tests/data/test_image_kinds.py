"""detkit.data.image_file: images of every kind, as arrays."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, UnidentifiedImageError

from detkit.data.image_file import decode_image, from_pillow
from detkit.errors import UserError
from tests.builders import sample_image


@pytest.mark.parametrize(
    ("suffix", "mode", "error"),
    [
        (".png", "RGB", 0),
        (".png", "L", 0),
        (".png", "P", 0),
        (".png", "1", 0),
        (".png", "I;16", 0),
        (".bmp", "RGB", 0),
        (".tif", "RGB", 0),
        (".tif", "CMYK", 1),
        (".gif", "P", 0),
        (".jpg", "RGB", 2),
        (".jpg", "L", 2),
        (".jpg", "CMYK", 3),
        (".webp", "RGB", 3),
    ],
)
def test_photos_of_every_kind(tmp_path: Path, suffix: str, mode: str, error: float) -> None:
    image = Image.fromarray(sample_image(48, 64)).filter(ImageFilter.GaussianBlur(4))  # or lossy formats lose its noise
    if mode == "I;16":
        grey = np.asarray(image.convert("L"))
        expected = np.repeat(grey[..., None], 3, 2)
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
        expected = np.asarray(image.convert("RGB"))
    path = tmp_path / f"image{suffix}"
    image.save(path, **({"quality": 95} if suffix in (".jpg", ".webp") else {}))
    pixels = decode_image(path)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels.astype(int) - expected).mean() <= error


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "LA", "RGBA", "PA", "CMYK", "I;16"])
def test_images_of_pillow_are_read_as_their_files(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(sample_image(48, 64)).filter(ImageFilter.GaussianBlur(4))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA", "PA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image = image.convert(mode)
    else:
        image = image.convert(mode)
    turned = Image.Exif()
    turned[0x0112] = 6
    if mode in ("CMYK", "PA"):  # Pillow itself reads some turned TIFFs from a file otherwise than from its bytes
        path, size = tmp_path / "x.tif", (48, 64, 3)
        image.save(path)
    else:
        path, size = tmp_path / "x.png", (64, 48, 3)
        image.save(path, exif=turned)
    pixels = from_pillow(Image.open(path))
    assert pixels.shape == size
    assert np.abs(pixels.astype(int) - decode_image(path)).mean() <= 1
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with suppress(UnidentifiedImageError), pytest.raises(UserError, match=str(path)):
        from_pillow(Image.open(path))


def test_transparent_is_white_also_where_turned(tmp_path: Path) -> None:
    colour = sample_image(40, 60)
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, 20:] = 128
    alpha[:, 40:] = 255
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.dstack([colour, alpha])).save(tmp_path / "x.png", exif=turned)
    pixels = np.rot90(decode_image(tmp_path / "x.png"), 1)
    assert (pixels[:, :20] == 255).all()
    assert np.abs(pixels[:, 20:40] - (colour[:, 20:40] * (128 / 255) + 127)).max() <= 1
    assert (pixels[:, 40:] == colour[:, 40:]).all()
