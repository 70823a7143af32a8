"""A detector's weights, images and a video for `detkit detect`."""

from pathlib import Path

import cv2
import pytest
import torch
from PIL import Image

from detkit.checkpoints import checkpoint
from detkit.config import Config, DataConfig, DetectConfig, TrainConfig
from detkit.models import build_detector
from tests.builders import tiny_ssd_config
from tests.cli.detecting import CLASSES
from tests.proposals.sample_images import sample_image


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the checkpoint of an untrained detector, in which some boxes pass .3 on every image."""
    torch.manual_seed(0)
    config = Config(
        tiny_ssd_config(), DataConfig(root=""), TrainConfig(iterations=1), DetectConfig(detections_per_image=15)
    )
    detector = build_detector(config.model, CLASSES)
    for layer in detector.head.classifiers:
        torch.nn.init.normal_(layer.weight, std=0.08)  # spread the scores, as training does
    path = tmp_path_factory.mktemp("run") / "best.pt"
    checkpoint.save(path, detector, config)
    return str(path)


@pytest.fixture
def image_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder `images`, of which the parent is the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = Path("images")
    folder.mkdir()
    for number, size in enumerate(((60, 90), (131, 77), (96, 96))):
        Image.fromarray(sample_image(*size, seed=number)).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture
def clip(image_files: Path) -> Path:
    """Return a video of seven frames 64x48 at 12.5 a second."""
    path = Path("clip.avi")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (64, 48))
    for number in range(7):
        writer.write(sample_image(48, 64, seed=number))
    writer.release()
    return path
