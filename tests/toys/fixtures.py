"""A tiny detector trained for seconds: what tests of training, checkpoints and processes share."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from detkit.cli import run_command
from tests.toys.toy import Toy, draw_toys

CONFIG = """
model: {{name: toy}}
data: {{root: {root}, train: [train], val: [val], test: [test], augment: [{{HorizontalFlip: {{p: 0.5}}}}]}}
train: {{iterations: 24, batch: 4, lr: 0.05, warmup: 3, workers: 0, evaluate_every: 8, save_every: 1, device: cpu}}
evaluate: {{batch: 4}}
"""

Train = Callable[..., int]
__all__ = ["_one_thread", "_undisturbed", "config", "rng", "toys", "train", "trained"]


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toys")
    draw_toys(root)
    return root


@pytest.fixture(scope="session")
def config(toys: Path) -> Path:
    path = toys / "toy.yaml"
    path.write_text(CONFIG.format(root=toys))
    return path


@pytest.fixture(scope="session")
def train(config: Path) -> Train:
    """Return `detkit train CONFIG ...` as a function of its other arguments, in this process."""

    def run(*arguments: str | Path) -> int:
        first = [] if "--resume" in arguments else [str(config)]
        return run_command("train", [*first, *map(str, arguments)])

    return run


@pytest.fixture(scope="session")
def trained(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a whole run with all that a checkpoint can hold."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert train("train.ema=0.9", "model.dropout=0.2", "model.norm=true", "--out", folder) == 0
    Toy.calls = 0  # or the test that is first to ask for this would count its own steps from 24
    return folder


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of the test's own: the same in every run, others with another DETKIT_TEST_SEED."""
    seed = os.environ.get("DETKIT_TEST_SEED", "0")
    print(f"DETKIT_TEST_SEED={seed}")  # pytest shows it where the test fails
    return random.Random(f"{seed} {request.node.name}")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """As in toy.py: bit-equal sums need one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    yield
    Toy.calls, Toy.signal_at, Toy.nan_at = 0, None, None
