"""A run that was cut off and resumed is the run that was not."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from detkit.checkpoints import checkpoint
from detkit.cli import run_command
from detkit.engine.log import truncate
from tests.toys.fixtures import Train
from tests.toys.toy import Toy

FLAGS = ("train.ema=0.9", "model.dropout=0.2", "model.norm=true")
TIMES = ("images_per_second", "data_share", "seconds")
UNLIKE = (*TIMES, "save_every", "workers")


def log_of(folder: Path) -> list[dict]:
    """Return log.jsonl without what depends on the clock."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_equal(one, other, where: str = "") -> None:
    """Bit-equal tensors, equal data, but for times and what cannot matter."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key not in UNLIKE:
                assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other)):
            assert_equal(*pair, f"{where}.{index}")
    else:
        assert one == other, where


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last.pt", "best.pt"):
        assert_equal(checkpoint.load(one / name), checkpoint.load(other / name), name)
    assert log_of(one) == log_of(other)
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    assert metrics[0]["AP"] == metrics[1]["AP"]
    assert metrics[0]["mAP"] == metrics[1]["mAP"] is not None


def run_toy(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.toys.train_toy", *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.run(command, cwd=root, env={**os.environ, **environment}, capture_output=True, text=True)


def test_a_killed_worker_is_named(trained: Path, train: Train, tmp_path: Path, monkeypatch, capsys) -> None:
    folder, losses = tmp_path / "run", Toy.losses

    def kill_a_worker(self: Toy, *batch: Any) -> dict[str, torch.Tensor]:
        if Toy.calls == 9:
            worker = multiprocessing.active_children()[0]
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
        return losses(self, *batch)

    monkeypatch.setattr(Toy, "losses", kill_a_worker)
    assert train(*FLAGS, "train.workers=1", "--out", folder) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: a process that loads images was killed")
    assert "train.workers=0" in said[-1]
    monkeypatch.setattr(Toy, "losses", losses)
    assert run_command("train", ["--resume", str(folder)]) == 0
    assert_same_run(folder, trained)


def test_killed_at_a_random_step(rng: random.Random, trained: Path, config: Path, train: Train, tmp_path: Path) -> None:
    step = rng.randrange(2, 24)
    folder = tmp_path / "killed"
    print(f"killed in step {step}")
    killed = run_toy(config, *FLAGS, "train.save_every=5", "train.workers=1", "--out", folder, TOY_KILL_AT=str(step))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (folder / "metrics.json").exists()
    assert train("--resume", folder) == 0
    assert_same_run(trained, folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_finishes_the_step_and_saves(
    number: signal.Signals,
    rng: random.Random,
    trained: Path,
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = rng.randrange(1, 24)
    folder = tmp_path / "stopped"
    Toy.signal_at = (step, number)
    handler = signal.getsignal(number)
    assert train(*FLAGS, "train.save_every=0", "--out", folder) == 128 + number
    assert signal.getsignal(number) == handler
    said = capsys.readouterr().err
    assert f"saved after step {step}" in said
    assert f"--resume {folder}" in said
    assert len(said.strip().splitlines()) == 1
    assert checkpoint.load(folder / "last.pt")["iteration"] == step
    assert train("--resume", folder) == 0
    assert_same_run(trained, folder)


def test_the_latest_evaluation_is_kept_by_a_run_that_stops_twice(train: Train, tmp_path: Path) -> None:
    """Also where the second part of the run ends before its first evaluation."""
    folder = tmp_path / "run"
    Toy.signal_at = (10, signal.SIGTERM)
    assert train("--out", folder) == 143
    evaluated = checkpoint.load(folder / "last.pt")["metrics"]
    assert evaluated["iteration"] == 8
    Toy.signal_at = (12, signal.SIGTERM)
    assert train("--resume", folder) == 143
    content = checkpoint.load(folder / "last.pt")
    assert content["iteration"] == 12
    assert content["metrics"] == evaluated
    assert (folder / "env.txt").read_text().count("torch: ") == 2, "each part of the run says what it ran on"


def test_the_loss_scale_is_resumed(train: Train, tmp_path: Path) -> None:
    fp16 = (*FLAGS, "train.amp=fp16", "train.save_every=0")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(*fp16, "--out", whole) == 0
    Toy.signal_at = (Toy.calls + 13, signal.SIGTERM)
    assert train(*fp16, "--out", cut) == 128 + signal.SIGTERM
    # it is no longer what a new scaler begins with, and has counted the steps since it last changed
    assert checkpoint.load(cut / "last.pt")["training"]["scaler"]["scale"] < 65536
    assert train("--resume", cut) == 0
    assert_same_run(whole, cut)


def test_what_was_logged_after_the_last_save_is_not_doubled(trained: Path, train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "failed"
    Toy.nan_at = 23
    assert train(*FLAGS, "train.save_every=0", "--out", folder) == 2
    assert log_of(folder)[-1]["iteration"] == 20
    assert checkpoint.load(folder / "last.pt")["iteration"] == 16
    Toy.nan_at = None
    assert train("--resume", folder) == 0
    assert_same_run(trained, folder)


def test_resuming_a_finished_run_changes_nothing(trained: Path, train: Train) -> None:
    before = {name: (trained / name).read_bytes() for name in ("last.pt", "best.pt", "log.jsonl", "config.yaml")}
    assert train("--resume", trained) == 0
    assert {name: (trained / name).read_bytes() for name in before} == before


def test_the_config_may_be_named_again(trained: Path, config: Path) -> None:
    assert run_command("train", [str(config), *FLAGS, "--resume", str(trained)]) == 0


def test_truncate_drops_later_and_broken_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"iteration": 20}\n{"iteration": 40, "x": 1}\n{"iteration": 40}\n{"itera')
    truncate(log, 2)
    assert log.read_text() == '{"iteration": 20}\n{"iteration": 40, "x": 1}\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "nowhere"], "nowhere/config.yaml"),
        (["--resume", "{trained}", "--out", "x"], "leave --out away"),
        (
            ["train.optimizer=adamw", "--resume", "{trained}"],
            "train.optimizer is 'sgd' in {trained}, and cannot",
        ),
        (["model.width=4", "--resume", "{trained}"], "model.width is 8 in {trained}, and cannot become 4"),
        (["{config}", "--resume", "{trained}"], "model.dropout: 0.0, not 0.2"),
        (["--out", "{trained}"], "on what?"),
        (["{config}", "--out", "{trained}"], "not an empty folder; --resume {trained}"),
        (["{config}", "train.batch=6", "train.accumulate=4"], "train.batch: 6 is not a multiple of train.accumulate 4"),
        (["{config}", "train.device=tpu"], "device 'tpu' is not one of auto, cpu, cuda"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, trained: Path, config: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in trained.iterdir()}
    places = {"trained": trained, "config": config}
    assert run_command("train", [argument.format(**places) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert message.format(**places) in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert files == {path: path.stat().st_mtime_ns for path in trained.iterdir()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_without_cuda(train: Train, tmp_path: Path, capsys) -> None:
    assert train("train.device=cuda", "--out", tmp_path / "run") == 2
    assert "finds no CUDA device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
