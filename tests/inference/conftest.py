"""Images and a video to detect on."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.builders import sample_image
from tests.inference import SIZES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("all") / "images"
    root.mkdir()
    for number, size in enumerate(SIZES):
        Image.fromarray(sample_image(*size, seed=number)).save(root / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of 12 frames 64x48 whose green tells the number; a noisy corner makes it worth its header."""
    path = tmp_path_factory.mktemp("videos") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (64, 48))
    for number in range(12):
        frame = np.full((48, 64, 3), (0, 20 * number, 200), np.uint8)
        frame[24:, 32:] = np.random.default_rng(number).integers(0, 256, (24, 32, 3))
        writer.write(frame)
    writer.release()
    return path
