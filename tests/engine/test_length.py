"""How long training takes: epochs beside iterations, evaluations by shares and epochs, an early end."""

import math
import signal
from pathlib import Path

import pytest

from detkit.checkpoints import checkpoint
from detkit.cli import run_command
from detkit.config import TrainConfig
from detkit.engine.length import due, evaluation_interval, in_steps
from detkit.errors import UserError
from detkit.experiment import load_config
from tests.engine.test_resume import assert_equal, assert_same_run, log_of
from tests.toys.fixtures import Train
from tests.toys.toy import Toy


def evaluated(folder: Path) -> list[int]:
    return [line["iteration"] for line in log_of(folder) if "mAP" in line]


@pytest.mark.parametrize(("epochs", "images", "batch", "steps"), [(2, 24, 4, 12), (1.5, 10, 4, 4), (0.01, 10, 32, 1)])
def test_epochs_are_whole_steps(epochs: float, images: int, batch: int, steps: int) -> None:
    recipe = in_steps(TrainConfig(epochs=epochs, batch=batch), images)
    assert (recipe.iterations, recipe.epochs) == (steps, 0)
    assert in_steps(TrainConfig(iterations=7), images).iterations == 7


@pytest.mark.parametrize(
    ("every", "steps"),
    [(4, [4, 8, 10]), (0, [10]), (0.25, [3, 5, 8, 10]), (0.1, [*range(1, 11)]), ("1 epoch", [3, 5, 8, 10])],
)
def test_when_it_is_evaluated(every: int | float | str, steps: list[int]) -> None:
    """10 images in batches of 4: an epoch is two and a half steps."""
    recipe = TrainConfig(iterations=10, batch=4, evaluate_every=every)
    interval = evaluation_interval(recipe, 10)
    assert [done for done in range(1, 11) if due(done, interval, 10)] == steps


@pytest.mark.parametrize("share", [1 / 3, 0.07, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("iterations", [10, 97, 4000])
def test_a_share_of_the_training_is_hit_as_often_as_it_fits(share: float, iterations: int) -> None:
    interval = evaluation_interval(TrainConfig(iterations=iterations, evaluate_every=share), 10)
    count = sum(due(done, interval, iterations) for done in range(1, iterations + 1))
    assert count == min(iterations, math.ceil(1 / share - 1e-9))


@pytest.mark.parametrize("every", ["often", "0 epochs", "2", 1.5, "-1 epoch"])
def test_other_intervals_are_one_line(every: float | str) -> None:
    with pytest.raises(UserError, match=r"^train\.evaluate_every: .* is no number of iterations \(500\), share"):
        TrainConfig(iterations=1, evaluate_every=every)


def test_one_length_replaces_the_other(config: Path, tmp_path: Path) -> None:
    changed = load_config(config, ["train.epochs=2.5"]).train
    assert (changed.iterations, changed.epochs) == (0, 2.5)
    again = load_config(config, ["train.epochs=2.5", "train.iterations=9"]).train
    assert (again.iterations, again.epochs) == (9, 0)
    own = tmp_path / "own.yaml"
    own.write_text(config.read_text().replace("iterations: 24", "iterations: 5, epochs: 2"))
    with pytest.raises(UserError, match=r"train\.iterations 5 and train\.epochs 2 are two lengths of one training"):
        load_config(own)
    with pytest.raises(UserError, match=r"missing train\.iterations, or train\.epochs"):
        load_config(config, ["train.iterations=0"])


def test_epochs_train_as_their_iterations_do(train: Train, tmp_path: Path) -> None:
    """24 images in batches of 4; the learning rate, too, is of twelve steps. Interrupted, it goes on exactly."""
    steps, epochs = tmp_path / "steps", tmp_path / "epochs"
    assert train("train.iterations=12", "train.ema=0.9", "--out", steps) == 0
    Toy.signal_at = Toy.calls + 7, signal.SIGTERM
    every = ("train.epochs=2", "train.evaluate_every=8", "train.ema=0.9")
    assert train(*every, "--out", epochs) == 143
    Toy.signal_at = None
    assert run_command("train", ["--resume", str(epochs)]) == 0
    one, other = (checkpoint.load(folder / "last.pt") for folder in (steps, epochs))
    for content in (one, other):
        content.pop("config")
    assert_equal(one, other)
    assert log_of(steps) == log_of(epochs)
    assert load_config(epochs / "config.yaml").train.epochs == 2


def test_epochs_may_become_more(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train("train.epochs=1", "data.test=[]", "--out", folder) == 0
    assert run_command("train", ["--resume", str(folder), "train.epochs=2"]) == 0
    assert checkpoint.load(folder / "last.pt")["iteration"] == 12
    assert run_command("train", ["--resume", str(folder), "train.epochs=1"]) == 2
    assert "train.iterations: 6 are fewer than the 12 that are done" in capsys.readouterr().err


def test_evaluations_by_share_and_by_epoch(train: Train, tmp_path: Path) -> None:
    assert train("train.evaluate_every=0.3", "data.test=[]", "--out", tmp_path / "share") == 0
    assert evaluated(tmp_path / "share") == [8, 15, 22, 24]
    assert train("train.evaluate_every=1.5 epochs", "data.test=[]", "--out", tmp_path / "epochs") == 0
    assert evaluated(tmp_path / "epochs") == [9, 18, 24]


STILL = ("train.evaluate_every=3", "train.patience=2", "train.lr=1e-9", "train.warmup=0")  # it learns nothing


def test_it_ends_early_where_val_gets_no_better(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "early"
    assert train(*STILL, "--out", folder) == 0
    assert evaluated(folder) == [3, 6, 9]
    said = capsys.readouterr().out
    assert "9: ends early, with no better val mAP in 2 evaluations\n" in said
    assert checkpoint.load(folder / "best.pt")["iteration"] == 3
    assert checkpoint.load(folder / "last.pt")["iteration"] == 9
    # it says so, and is not trained on by itself
    assert train("--resume", folder) == 0
    assert f"{folder} is finished, only its test is done again; to train on: train.patience=0\n" in (
        capsys.readouterr().out
    )
    assert checkpoint.load(folder / "last.pt")["iteration"] == 9
    # with more patience it is the run that had it from the beginning
    whole = tmp_path / "whole"
    assert train(*STILL, "train.patience=0", "--out", whole) == 0
    assert train("--resume", folder, "train.patience=0") == 0
    assert_equal(*(checkpoint.load(run / "last.pt") for run in (folder, whole)))
    assert log_of(folder) == log_of(whole)


@pytest.mark.parametrize("step", [4, 8, 9])
def test_patience_is_resumed_exactly(step: int, train: Train, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(*STILL, "--out", whole) == 0
    Toy.signal_at = Toy.calls + step, signal.SIGTERM
    assert train(*STILL, "--out", cut) == 143
    Toy.signal_at = None
    assert train("--resume", cut) == 0
    assert_same_run(cut, whole)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("data.val=[]",), "train.patience: 2 evaluations, but there is no val split; patience=0 trains to the end"),
        (("train.evaluate_every=0",), "train.patience: 2 evaluations, but train.evaluate_every is 0"),
    ],
)
def test_patience_needs_evaluations(
    changes: tuple[str, ...], words: str, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*STILL, *changes, "--out", tmp_path / "run") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
