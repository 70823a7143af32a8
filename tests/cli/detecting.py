"""The command `detkit detect`, and what it writes."""

import json
from pathlib import Path

import pytest

from detkit.cli import run_command
from detkit.config import DataConfig
from detkit.data.dataset import DetectionDataset
from detkit.data.opening import open_dataset

CLASSES = ("ace", "king", "queen")  # of the detector


def detect(*arguments: object) -> int:
    return run_command("detect", [*map(str, arguments)])


def report(out: str = "detections") -> dict:
    return json.loads(Path(out, "detections.json").read_text())


def files(folder: str = "detections") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir()) if Path(folder).exists() else []


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def opened(kind: str) -> DetectionDataset:
    """Open the data set that was written, by the data sets' own reader."""
    return open_dataset(DataConfig(root=f"detections/{kind}", format=kind, test=["detected"]), "test", CLASSES)
