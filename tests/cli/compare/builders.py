"""The command `detkit compare`, and what it leaves."""

import json
from pathlib import Path

import pytest

from detkit.backbones.describe import count_flops
from detkit.cli import main
from detkit.models import Detector
from tests.builders import images_of, random_image

# images a second by detector and batch, which stand for measured ones
SPEEDS = {"slim": {1: 10.0, 16: 40.0}, "wide": {1: 5.0, 16: 20.0}}


def compare(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def failure(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 2) -> str:
    """Run what must fail; return the one line that it says."""
    capsys.readouterr()
    assert compare(*arguments) == status
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    return lines[0]


def flops(detector: Detector, side: int) -> int:
    return count_flops(lambda: detector.eval().predict(images_of(random_image(side, side))))


def content(out: Path) -> dict:
    """Return what compare.json holds."""
    return json.loads((out / "compare.json").read_text())
