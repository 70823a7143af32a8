"""Toy detectors, and a whole comparison of two of them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from detkit.cli import main
from detkit.comparison import detecting, job, training
from tests.cli.compare.builders import SPEEDS
from tests.toys.toy import draw_toys

CONFIG = """
model: {{name: toy, width: {width}}}
data: {{root: {root}, train: [train], val: [val], test: [test], augment: [{{HorizontalFlip: {{p: 0.5}}}}]}}
train: {{iterations: 24, batch: 4, lr: 0.05, warmup: 3, workers: 0, evaluate_every: 8, save_every: 1, device: cpu}}
evaluate: {{batch: 4}}
"""


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compared") / "toys"
    root.mkdir()
    draw_toys(root)
    return root


@pytest.fixture(scope="session")
def configs(toys: Path) -> Path:
    """Return a folder of two configs of toy detectors."""
    folder = toys.parent / "configs"
    folder.mkdir()
    for name, width in (("slim", 4), ("wide", 8)):
        (folder / f"{name}.yaml").write_text(CONFIG.format(root=toys, width=width))
    return folder


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Toys train in processes that know them; what else has processes of its own is measured in this one."""
    patch.setattr(training, "COMMAND", (sys.executable, "-m", "tests.cli.compare.train_toy"))
    patch.setattr(job, "measure_cost", detecting._cost)
    patch.setattr(job, "speeds", lambda entries, *_: [SPEEDS.get(entry.name, {1: 1.0, 16: 1.0}) for entry in entries])
    patch.chdir(Path(__file__).parents[3])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    stand_in(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def compared(configs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole comparison of both."""
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        assert main(["compare", str(configs), "--out", str(out)]) == 0
    return out
