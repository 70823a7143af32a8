"""detkit detect: odd files, each as a user would expect."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detkit.data.image_file import decode_image
from tests.cli.detecting import detect, opened, report
from tests.proposals.sample_images import sample_image


def black_png(width: int, height: int) -> bytes:
    packed = zlib.compressobj(9)
    rows = b"".join(packed.compress(bytes(width + 1)) for _ in range(height)) + packed.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def write_odd(folder: Path, kind: str) -> tuple[str, tuple[int, int] | str]:
    """Write a file, return its name, and the (width, height) it must be seen at, or why it cannot be."""
    colour = sample_image(40, 60)
    image = Image.fromarray(colour)
    turned = Image.Exif()
    turned[0x0112] = 6
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[:, :30] = 0
    clear = Image.fromarray(np.dstack([colour, alpha]))
    others = [Image.fromarray(np.full_like(colour, value)) for value in (10, 200)]
    animated = {"save_all": True, "append_images": others, "duration": 100}
    name, size = f"{kind}.png", (60, 40)
    match kind:
        case "grey":
            image.convert("L").save(folder / name)
        case "sixteen":
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / name)
        case "palette":
            image.quantize(16).save(folder / name)
        case "palette clear":
            image.quantize(16).save(folder / name, transparency=0)
        case "clear":
            clear.save(folder / name)
        case "cmyk":
            image.convert("CMYK").save(folder / (name := "cmyk.jpg"))
        case "turned":
            image.save(folder / (name := "turned.jpg"), exif=turned)
            size = (40, 60)
        case "gif" | "webp":
            image.save(folder / (name := f"animated.{kind}"), **animated)
        case "UPPER":
            image.save(folder / (name := "UPPER.JPG"), "JPEG")
        case "unicode":
            image.save(folder / (name := "Köln 東京 \N{CAT} 1.jpg"))
        case "no utf-8":
            name = os.fsdecode(b"caf\xe9.jpg")
            image.save(folder / name)
        case "another suffix":
            image.save(folder / (name := "png.jpg"), "PNG")
        case "empty":
            (folder / (name := "empty.jpg")).touch()
            size = "empty file"
        case "text":
            (folder / (name := "page.jpg")).write_text("<html>not found</html>")
            size = "corrupt or truncated image"
        case "truncated jpeg" | "truncated png" | "truncated webp" | "truncated gif":
            suffix = kind.split()[1]
            image.save(folder / (name := f"cut.{suffix}"))
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) * 2 // 3])
            size = "corrupt or truncated image"
        case "huge":
            (folder / name).write_bytes(black_png(20000, 20000))
            size = (
                "400,000,000 pixels, the limit is 120,000,000; if it is to be trusted, set DETKIT_MAX_PIXELS=400000000"
            )
    return name, size


ODD = (
    *("grey", "sixteen", "palette", "palette clear", "clear", "cmyk", "turned", "gif", "webp", "UPPER", "unicode"),
    *("no utf-8", "another suffix", "empty", "text", "truncated jpeg", "truncated png", "truncated webp"),
    "truncated gif",
)


@pytest.mark.parametrize("kind", ODD)
def test_odd_file_among_others(weights: str, image_files: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    name, size = write_odd(image_files, kind)
    (image_files / "notes.txt").write_text("not looked at")
    broken = isinstance(size, str)
    status = detect(weights, image_files, "--score", ".3", "--format", "json,coco,csv,voc,yolo", "--crops", "cut")
    captured = capsys.readouterr()
    assert status == (1 if broken else 0)
    entries = {entry["file"]: entry for entry in report()["images"]}
    assert len(entries) == (3 if broken else 4)
    if broken:
        assert captured.err.splitlines() == [f"error: images/{name}: {size}"]
        assert "1 of 4 sources damaged" in captured.out.splitlines()[-1]
        return
    assert captured.err == ""
    entry = entries[f"images/{name}"]
    assert (entry["width"], entry["height"]) == size
    drawn = decode_image(Path("detections", entry["drawn"]))
    assert drawn.shape[1::-1] == size
    assert Path(name).stem == Path(entry["drawn"]).stem
    # one transparency, one animation's image, one orientation for the reader of data sets and for detection
    read = opened("voc")
    row = [*entries].index(f"images/{name}")
    assert np.array_equal(read.image(row), decode_image(image_files / name))
    if kind in ("gif", "webp"):
        assert (
            np.abs(decode_image(image_files / name).astype(int) - sample_image(40, 60)).mean() < 30
        )  # the first, not 10 or 200
    if kind == "clear":
        assert (read.image(row)[:, :30] == 255).all()


def test_huge_picture_is_one_line(weights: str, image_files: Path) -> None:
    """In a separate process, since OpenCV reads its limit when it is imported."""
    _, reason = write_odd(image_files, "huge")
    code = (
        "import sys; from detkit.cli import run_command\n"
        "status = run_command('detect', sys.argv[1:])\n"
        # not getrusage's ru_maxrss, which begins with that of the process of the tests
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(int(peak.split()[1]) >> 10); sys.exit(status)"
    )
    arguments = [sys.executable, "-c", code, weights, "images"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: images/huge.png: {reason}\n")
    assert int(done.stdout.split()[-1]) < 1100  # MiB; its pixels alone would be 1145


def test_transparency_is_turned_with_the_pixels(tmp_path: Path) -> None:
    colour, alpha = sample_image(40, 60), np.full((40, 60), 255, np.uint8)
    alpha[:, :20] = 0
    turned = Image.Exif()
    turned[0x0112] = 6
    image = Image.fromarray(np.dstack([colour, alpha]))
    image.save(tmp_path / "stored.png")
    image.save(tmp_path / "x.png", exif=turned)
    stored = decode_image(tmp_path / "stored.png")
    assert stored.shape == (40, 60, 3)
    assert (stored[:, :20] == 255).all()
    assert np.array_equal(np.rot90(stored, -1), decode_image(tmp_path / "x.png"))
