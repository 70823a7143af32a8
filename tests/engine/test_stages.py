"""Stages: what one hands over to the next, and where a resumed run goes on."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from detkit.checkpoints import checkpoint
from detkit.engine.meter import Meter
from detkit.engine.optimizer import build_optimizer
from detkit.engine.state import State
from detkit.engine.train import step_seed
from detkit.errors import UserError
from detkit.experiment import load_config
from detkit.models import SGD, StageRun
from detkit.structures import Images, Targets
from tests.engine.reference import copy_state, descend
from tests.toys.fixtures import Train
from tests.toys.toy import Toy

CPU = torch.device("cpu")
SHORT = ("train.iterations=4", "data.val=[]", "data.test=[]")


@dataclass(frozen=True)
class Shift:
    """A stage of another kind: adds to the biases, 3 times, saving each time."""

    name: str = "shift"
    iterations_factor: int = 0
    fail_at: int | None = None

    def run(self, detector: Toy, run: StageRun) -> None:
        done = run.restore(detector).get("done", 0)
        run.begin()
        for step in range(done, 3):
            if step == self.fail_at:
                raise KeyboardInterrupt
            with torch.no_grad():
                detector.out.get_parameter("bias").add_(1.0)
            run.save_last(detector, {"done": step + 1})


def test_stages_follow_each_other_and_resume_where_they_were(train: Train, tmp_path: Path, monkeypatch) -> None:
    biases: list[Tensor] = []

    def run(*arguments: str | Path, fail_at: int | None = None) -> int:
        monkeypatch.setattr(Toy, "stages", lambda _: [SGD(), Shift(fail_at=fail_at)])
        return train(*arguments)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(*SHORT, "--out", whole) == 0
    assert run(*SHORT, "--out", cut, fail_at=1) == 130
    content = checkpoint.load(cut / "last.pt")
    assert content["training"]["stage"] == "shift"
    assert content["training"]["done"] == 1
    assert content["iteration"] == 4, "a stage without steps leaves their number as it was"
    calls = Toy.calls
    assert run("--resume", cut) == 0
    assert Toy.calls == calls, "the finished stage ran again"
    for folder in (whole, cut):
        biases.append(checkpoint.load(folder / "last.pt")["model"]["out.bias"])
        before = checkpoint.load(folder / "best.pt")["model"]["out.bias"]
        torch.testing.assert_close(biases[-1], before + 3)
    assert torch.equal(*biases)


@dataclass(frozen=True)
class Conclude:
    """A stage that adds to the biases, once."""

    name: str
    iterations_factor: int = 0

    def run(self, detector: Toy, run: StageRun) -> None:
        run.restore(detector)
        run.begin()
        with torch.no_grad():
            detector.out.get_parameter("bias").add_(1.0)
        run.conclude(detector)


def test_a_finished_stage_is_passed_by(train: Train, tmp_path: Path, monkeypatch) -> None:
    stages = [SGD(), Conclude("first"), Shift("second", fail_at=0)]
    monkeypatch.setattr(Toy, "stages", lambda _: stages)
    assert train(*SHORT, "--out", tmp_path / "run") == 130
    saved = checkpoint.load(tmp_path / "run" / "last.pt")
    assert saved["training"]["stage"] == "first"
    stages[2] = Shift("second")
    assert train("--resume", tmp_path / "run") == 0
    bias = checkpoint.load(tmp_path / "run" / "last.pt")["model"]["out.bias"]
    torch.testing.assert_close(bias, saved["model"]["out.bias"] + 3)


@dataclass(frozen=True)
class Look:
    """A stage that notes the weights that it begins with."""

    seen: dict[str, Tensor]
    name: str = "look"
    iterations_factor: int = 0

    def run(self, detector: Toy, run: StageRun) -> None:
        run.begin()
        self.seen.update(copy_state(detector))


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_next_stage_begins_with_the_average(
    ema: float, train: Train, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Tensor] = {}
    monkeypatch.setattr(Toy, "stages", lambda _: [SGD(), Look(seen)])
    changes = (*SHORT, "model.norm=true", f"train.ema={ema}")
    assert train(*changes, "--out", tmp_path / "run") == 0
    end = descend(load_config(config, list(changes)))
    torch.testing.assert_close(seen, end.weights if end.average is None else end.average, rtol=1e-4, atol=1e-6)


def test_a_longer_stage_lowers_the_rate_later(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "stages", lambda _: [SGD("long", iterations_factor=2), SGD("short")])
    schedule = ("train.schedule=steps", "train.milestones=[15]", "train.gamma=0.1", "train.lr=0.01", "train.warmup=0")
    folder = tmp_path / "run"
    assert train(*SHORT, *schedule, "train.iterations=20", "--out", folder) == 0
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    rates = {line["iteration"]: line["lr"] for line in lines}
    # the long stage's milestone is at 30 of its 40 steps, the short one's at 15 of 20
    assert rates == {20: 0.01, 40: pytest.approx(0.001), 60: pytest.approx(0.001)}


def test_iterations_are_counted_over_all_stages(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In checkpoints, evaluations and the log, also of a run that stopped within the second stage."""
    monkeypatch.setattr(Toy, "stages", lambda _: [SGD("first"), SGD("second")])
    folder = tmp_path / "run"
    Toy.signal_at = (10, signal.SIGTERM)
    assert train("train.iterations=8", "data.test=[]", "--out", folder) == 143
    stopped = checkpoint.load(folder / "last.pt")
    assert (stopped["iteration"], stopped["training"]["stage"]) == (10, "second")
    assert (stopped["metrics"]["iteration"], stopped["metrics"]["stage"]) == (8, "first")
    assert train("--resume", folder) == 0
    ended = checkpoint.load(folder / "last.pt")
    assert ended["iteration"] == 16
    assert (ended["metrics"]["iteration"], ended["metrics"]["stage"]) == (16, "second")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "mAP" in line] == [8, 16]


def test_random_numbers_differ_from_stage_to_stage(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step's are those of its number in the run, from the first step of the first stage."""
    seeds, losses = [], Toy.losses

    def listen(self: Toy, images: Images, targets: Targets) -> dict[str, Tensor]:
        seeds.append(torch.initial_seed())
        return losses(self, images, targets)

    monkeypatch.setattr(Toy, "losses", listen)
    monkeypatch.setattr(Toy, "stages", lambda _: [SGD("long", iterations_factor=2), SGD("short")])
    assert train(*SHORT, "train.seed=3", "--out", tmp_path / "run") == 0
    assert seeds == [step_seed(3, iteration, 0) for iteration in range(12)]
    assert len(set(seeds)) == 12


def test_what_a_stage_without_steps_made_becomes_the_best(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is worse on val than what gradient descent reached."""
    monkeypatch.setattr(Toy, "stages", lambda _: [SGD(), Spoil()])
    assert train("--out", tmp_path / "run") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert max(line.get("mAP", 0) for line in lines) > lines[-1]["mAP"]
    for name in ("best.pt", "last.pt"):
        assert not checkpoint.load(tmp_path / "run" / name)["model"]["out.weight"].any()


@dataclass(frozen=True)
class Spoil:
    """A stage that sets the weights of the output to 0."""

    name: str = "spoil"
    iterations_factor: int = 0

    def run(self, detector: Toy, run: StageRun) -> None:
        run.restore(detector)
        run.begin()
        with torch.no_grad():
            detector.out.get_parameter("weight").zero_()
        run.conclude(detector)


def test_an_optimiser_of_other_groups_is_refused(trained: Path) -> None:
    content = checkpoint.load(trained / "last.pt")
    detector, config = checkpoint.build(content, "last.pt")
    state = State(detector, build_optimizer(detector, config.train), GradScaler("cpu", enabled=False), None, Meter(CPU))
    assert state.restore(content, "last.pt", 24) == 24
    detector.backbone.requires_grad_(False)
    state.optimizer = build_optimizer(detector, config.train)
    with pytest.raises(UserError, match=r"^last\.pt: saved by another optimiser"):
        state.restore(content, "last.pt", 24)
