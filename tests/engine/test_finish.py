"""The end of a training run: sample images, and what a failure there costs."""

from pathlib import Path

import pytest
import torch

from detkit.config import DataConfig
from detkit.data.dataset import DetectionDataset
from detkit.data.opening import open_dataset
from detkit.engine import finish
from detkit.engine.finish import save_samples
from detkit.errors import UserError
from detkit.structures import DetectionSet


@pytest.fixture
def dataset(toys: Path) -> DetectionDataset:
    return open_dataset(DataConfig(root=str(toys), train=["train"]), "train")


def save(dataset: DetectionDataset, folder: Path, *found: tuple[int, float, float]) -> dict[str, bytes]:
    """Return what `save_samples` writes, by name, for boxes given as (image, left edge, score)."""
    image, left, score = torch.tensor(found).reshape(-1, 3).unbind(1)
    boxes = torch.stack((left, left, left + 15, left + 9), 1)
    labels = torch.zeros(len(found), dtype=torch.int64)
    save_samples(dataset, DetectionSet(boxes, score, labels, image.long(), dataset.ids, dataset.classes), folder)
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


def test_samples_show_detections_from_a_score_on(dataset: DetectionDataset, tmp_path: Path) -> None:
    all_of_them = save(dataset, tmp_path / "all", (0, 0, 0.9), (0, 8, 0.29), (0, 16, 0.31), (23, 4, 0.1))
    confident = save(dataset, tmp_path / "confident", (0, 0, 0.9), (0, 16, 0.31))
    best = save(dataset, tmp_path / "best", (0, 0, 0.9))
    assert all_of_them == confident
    assert [name for name in best if best[name] != confident[name]] == [dataset.ids[0]]


def test_samples_are_spread_over_the_data_set(dataset: DetectionDataset, tmp_path: Path) -> None:
    assert len(dataset) == 24
    assert sorted(save(dataset, tmp_path)) == [dataset.ids[i] for i in (0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23)]


def broken(*_: object, **__: object) -> None:
    raise ValueError("a $ in a name,\nof two lines")


def test_a_late_failure_costs_nothing_else(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finish, "save_samples", broken)
    monkeypatch.setattr(finish, "pr_plot", broken)
    assert train("--out", tmp_path / "run") == 1
    said = capsys.readouterr()
    reason = "ValueError: a $ in a name, of two lines"
    assert said.err.splitlines()[-1] == (
        f"warning: not written: plots: {reason}; samples: {reason}; all else is complete"
    )
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"metrics.json", "report.html", "errors.json", "last.pt", "best.pt"} <= names


def test_a_full_disk_at_the_end_still_shows_the_numbers(train, tmp_path, monkeypatch, capsys):
    def full(path: Path, content: str) -> None:
        raise UserError(f"{path}: No space left on device, nothing written")

    monkeypatch.setattr(finish, "write_file", full)
    assert train("--out", tmp_path / "run") == 2
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].endswith("metrics.json: No space left on device, nothing written")
    assert "mAP" in said.out.split("the best so far")[-1]
