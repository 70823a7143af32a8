"""The folder of a run: one process writes it, and whatever a killed one left can be gone on with."""

import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from detkit.checkpoints import checkpoint
from detkit.cli import run_command
from detkit.engine.run import Run
from detkit.models import SGD
from tests.engine.test_resume import FLAGS, assert_same_run, log_of
from tests.engine.test_stages import Conclude
from tests.locks import held_by_another
from tests.toys.fixtures import Train
from tests.toys.toy import Toy, draw_toys

SHORT = ("train.iterations=4", "data.test=[]")


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command has ended with."""
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def stopped(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Return the folder of a run that was stopped after 10 of 24 steps."""
    Toy.signal_at = (10, signal.SIGTERM)
    assert train(*FLAGS, "--out", tmp_path / "stopped") == 143
    Toy.signal_at = None
    capsys.readouterr()
    return tmp_path / "stopped"


def test_a_second_process_is_told_of_the_first(
    stopped: Path, trained: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    """And goes on as soon as the first is dead, however it died."""
    with held_by_another(stopped / ".lock") as number:
        before = contents(stopped)
        assert train("--resume", stopped) == 2
        assert f"{stopped} is being written by process {number} on " in error(capsys)
        assert contents(stopped) == before
    assert train("--resume", stopped) == 0
    assert_same_run(trained, stopped)
    assert not (stopped / ".lock").exists()


@pytest.mark.parametrize("arguments", [["--resume"], [*FLAGS, "--out"]], ids=["resume", "anew"])
def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    arguments: list[str], trained: Path, train: Train, tmp_path: Path
) -> None:
    """Also what it was writing is cleared away."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("env.txt", "config.yaml"):
        shutil.copy(trained / name, folder)
    for name in (".lock", ".last.x0_yz123.tmp.pt"):
        (folder / name).write_text("cut o")
    assert train(*arguments, folder) == 0
    assert_same_run(trained, folder)
    assert {path.name for path in folder.iterdir()} == {path.name for path in trained.iterdir()}


@pytest.mark.parametrize("names", [["config.yaml"], ["env.txt", "config.yaml", "best.pt"], ["thesis.txt"]], ids=len)
def test_other_files_keep_a_run_out(
    names: list[str], trained: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A config alone is its user's."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in names:
        shutil.copy(trained / name if (trained / name).exists() else __file__, folder / name)
    before = contents(folder)
    assert train("--out", folder) == 2
    assert "is not an empty folder" in error(capsys)
    if "config.yaml" in names:
        assert train("--resume", folder) == 2
        assert "there is no" in error(capsys)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.seed=5", "train.seed is 0 in {folder}, and cannot become 5 on a resume; a new run can begin with"),
        ("train.batch=8", "train.batch is 4"),
        ("train.accumulate=2", "train.accumulate is 1"),
        ("model.name=ssd", "model."),
        ("data.classes=[circle,star]", "data.classes is None"),
        ("evaluate.metric=coco", "evaluate.metric is 'voc07'"),
        ("train.weights={folder}/best.pt", "train.weights is None"),
        ("train.iterations=9", "train.iterations: 9 are fewer than the 10 that are done"),
    ],
)
def test_what_cannot_change_is_refused(
    change: str, message: str, stopped: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(stopped)
    assert train("--resume", stopped, change.format(folder=stopped)) == 2
    assert message.format(folder=stopped) in error(capsys)
    assert contents(stopped) == before


def test_what_changes_is_said_and_recorded(stopped: Path, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    """Also the number of processes, which is no key."""
    content = checkpoint.load(stopped / "last.pt")
    content["training"]["run"]["processes"] = 2
    checkpoint.write(stopped / "last.pt", content)
    assert train("--resume", stopped, "train.iterations=12", "train.lr=0.01") == 0
    lines = {"train.iterations 24 -> 12", "train.lr 0.05 -> 0.01", "processes 2 -> 1"}
    for text in (capsys.readouterr().out, (stopped / "env.txt").read_text()):
        assert set(re.findall("^changed: (.*)$", text, re.MULTILINE)) == lines
    assert "iterations: 12" in (stopped / "config.yaml").read_text()
    assert checkpoint.load(stopped / "last.pt")["iteration"] == 12


def test_a_finished_run_says_so_and_goes_on_where_it_gets_more_steps(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert train(*SHORT, "--out", folder) == 0
    assert "is finished" not in capsys.readouterr().out
    assert train("--resume", folder) == 0
    assert f"{folder} is finished, only its test is done again; to train on: train.iterations=8\n" in (
        capsys.readouterr().out
    )
    assert train("--resume", folder, "train.iterations=6") == 0
    said = capsys.readouterr().out
    assert "changed: train.iterations 4 -> 6\n" in said
    assert "is finished" not in said
    assert checkpoint.load(folder / "last.pt")["iteration"] == 6


def test_steps_cannot_be_added_to_a_stage_that_is_done(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Toy, "stages", lambda _: [SGD(), Conclude("second")])
    folder = tmp_path / "run"
    assert train(*SHORT, "--out", folder) == 0
    assert train("--resume", folder) == 0
    assert f"to train on: a new run with train.weights={folder}/last.pt\n" in capsys.readouterr().out
    assert train("--resume", folder, "train.iterations=6") == 2
    assert "train.iterations: 4 -> 6, but the stages of 4 are done" in error(capsys)


def test_a_log_is_the_same_where_a_stage_is_killed_behind_its_evaluation(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its line is of the same step as the last.pt of the stage before."""
    monkeypatch.setattr(Toy, "stages", lambda _: [SGD(), Conclude("second")])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(*SHORT, "--out", whole) == 0

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        save = Run.save_last
        patch.setattr(Run, "save_last", lambda run, *args: (fail if run.stage == "second" else save)(run, *args))
        assert train(*SHORT, "--out", cut) == 130
    assert len(log_of(cut)) == len(log_of(whole)) == 3
    assert train("--resume", cut) == 0
    assert log_of(cut) == log_of(whole)


def test_what_a_stage_draws_as_it_begins_is_the_same_in_a_resumed_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[float]] = []
    monkeypatch.setattr(Toy, "stages", lambda _: [SGD(), Conclude("second")])
    monkeypatch.setattr(Toy, "begin_stage", lambda _, stage: stage == "second" and drawn.append(torch.rand(3).tolist()))
    assert train(*SHORT, "--out", tmp_path / "run") == 0
    content = checkpoint.load(tmp_path / "run" / "last.pt")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt  # no signal, which a process that runs in the background may ignore

    with monkeypatch.context() as patch:
        patch.setattr(Conclude, "run", interrupted)
        assert train(*SHORT, "--out", tmp_path / "cut") == 130
    assert train("--resume", tmp_path / "cut") == 0
    assert drawn[0] == drawn[1] == drawn[2]
    assert content["training"]["finished"]


@pytest.fixture
def moved(stopped: Path, tmp_path: Path) -> Path:
    """Return a copy of the data set that the run `stopped` now has."""
    draw_toys(tmp_path / "data")
    config = stopped / "config.yaml"
    config.write_text(re.sub("root: .*", f"root: {tmp_path / 'data'}", config.read_text()))
    return tmp_path / "data"


def test_a_data_set_may_move(moved: Path, stopped: Path, trained: Path, train: Train) -> None:
    assert train("--resume", stopped) == 0
    assert log_of(stopped) == log_of(trained)
    assert f"-> '{moved}'" in (stopped / "env.txt").read_text()


def edit(path: Path, *change: str) -> None:
    text = path.read_text()
    path.write_text(text.replace(*change))
    assert path.read_text() != text


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("ImageSets/Main/train.txt", ("train003\n", ""), "images (24 -> 23), "),
        ("Annotations/train000.xml", ("<ymax>", "<ymax>1"), "boxes;"),
        ("Annotations/train000.xml", ("<difficult>0", "<difficult>1"), "flags;"),
    ],
    ids=["images", "boxes", "flags"],
)
def test_a_changed_training_split_is_refused(
    file: str, change: tuple[str, str], message: str, moved: Path, stopped: Path, train: Train, capsys
) -> None:
    edit(moved / file, *change)
    before = contents(stopped)
    assert train("--resume", stopped) == 2
    said = error(capsys)
    assert f"data.train is no longer what {stopped} was trained on: other {message}" in said
    assert f"train.weights={stopped}/last.pt" in said
    assert contents(stopped) == before


def test_a_changed_validation_split_is_said(moved: Path, stopped: Path, train: Train) -> None:
    edit(moved / "ImageSets/Main/val.txt", "val003\n", "")
    assert train("--resume", stopped) == 0
    assert "changed: data.val: other images (9 -> 8), objects" in (stopped / "env.txt").read_text()


def test_a_best_pt_is_no_last_pt(stopped: Path, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(stopped / "best.pt", stopped / "last.pt")
    assert train("--resume", stopped) == 2
    assert f"{stopped}/last.pt: has no state of training, as the best.pt of a run" in error(capsys)


@pytest.mark.parametrize("line", ['{"iteration": 5, "lo', "[1]", '{"x": 1}', '{"iteration": 9' + 5000 * "9" + "}"])
def test_a_broken_line_of_the_log_is_named(
    line: str, stopped: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    log = stopped / "log.jsonl"
    log.write_text(f"{line}\n{log.read_text()}")
    before = contents(stopped)
    assert run_command("train", ["--resume", str(stopped)]) == 2
    assert f"{log}: line 1 is damaged; remove it" in error(capsys)
    assert contents(stopped) == before
