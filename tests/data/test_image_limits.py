"""An image takes memory in proportion to its pixels, and one of too many pixels next to none."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHILD = """
import sys
from pathlib import Path
from detkit.data.image_file import decode_image
from detkit.errors import UserError
import cv2, PIL.Image
# not getrusage's ru_maxrss, which begins with that of the process of the tests
peak = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
try:
    print(decode_image(Path(sys.argv[1])).shape)
except UserError as error:
    print(error)
print((peak() - before) * 1024)
"""


def decode(path: Path, **environment: str) -> tuple[str, int]:
    """Return what decoding in a process of its own says, and the bytes that its memory grew by."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    said, grown = done.stdout.splitlines()
    return said, int(grown)


def test_an_image_above_the_limit_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (20000, 20000)).save(path)
    said, grown = decode(path)
    assert said == (
        f"{path}: 400,000,000 pixels, the limit is 120,000,000; if it is to be trusted, set DETKIT_MAX_PIXELS=400000000"
    )
    assert grown < 100e6


def test_a_png_of_which_a_chunk_states_too_many_bytes_takes_no_memory(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path := tmp_path / "small.png")
    content = path.read_bytes()
    length = content.index(b"IDAT") - 4
    path.write_bytes(content[:length] + struct.pack(">I", 1_500_000_000) + content[length + 4 :])
    said, grown = decode(path)
    assert said == f"{path}: corrupt or truncated image"
    assert grown < 100e6
    path.write_bytes(content + b"more")
    assert decode(path)[0] == "(30, 40, 3)"


def test_the_limit_is_the_users(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path := tmp_path / "small.png")
    assert decode(path, DETKIT_MAX_PIXELS="1200")[0] == "(30, 40, 3)"
    assert "1,200 pixels, the limit is 1,199;" in decode(path, DETKIT_MAX_PIXELS="1199")[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_memory_is_in_proportion_to_the_pixels(mode: str, tmp_path: Path) -> None:
    side = 4000
    Image.new(mode, (side, side)).save(path := tmp_path / "large.png")
    said, grown = decode(path)
    assert said == f"({side}, {side}, 3)"
    assert grown < 14 * side * side  # numbers of four bytes in three channels alone would take 12
