"""The benchmark of training steps: those of the config, in each number format."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from detkit.benchmarks import steps
from detkit.cli import main
from detkit.config import TrainConfig
from detkit.engine.step import Step
from detkit.models import Detector
from detkit.runtime.race import Setting


def test_the_steps(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, Detector, list[Tensor]]] = []

    class Watched(Step):
        def __init__(self, detector: Detector, recipe: TrainConfig, device: torch.device) -> None:
            made.append((recipe.amp, detector, [parameter.detach().clone() for parameter in detector.parameters()]))
            super().__init__(detector, recipe, device)

    monkeypatch.setattr(steps, "Step", Watched)
    (benchmark,) = steps.step_benchmarks(str(config), ["train.batch=2"])
    assert benchmark.name == "toy, 4 training steps of 2 images"
    for runner in benchmark.runners:
        runner.setup(Setting("cpu", 1, 1))()
    assert [amp for amp, *_ in made] == ["none", "bf16"]
    for _, detector, before in made:
        assert all(not torch.equal(old, new) for old, new in zip(before, detector.parameters(), strict=True))


def test_wrong_arguments(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["steps"], "give --config CONFIG"),
        (["steps", "train.lr=1"], "train.lr=1 changes a config: give --config CONFIG"),
        (["steps", "--config", str(config), "train.lr=fast"], "train.lr"),
        (["steps", "--config", str(config), "data.root=nowhere"], "nowhere"),
    ):
        assert main(["benchmark", *arguments]) == 2
        assert words in capsys.readouterr().err
