"""detkit compare: what is done is not done again, and what was stopped goes on."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from detkit.checkpoints import checkpoint
from detkit.comparison import measure, training
from detkit.comparison.times import forget, read_times, timed
from detkit.runtime.lock import NAME
from tests.cli.compare.builders import compare, content, failure
from tests.locks import held_by_another

TIMES = ("training_seconds", "training_images_per_second", "memory_bytes")


def test_the_same_command_again_does_nothing_twice(
    compared: Path, configs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(training, "COMMAND", ("false",))
    monkeypatch.setattr(measure, "_evaluate", lambda *_: pytest.fail("evaluated again"))
    before = content(compared)
    assert compare(configs, "--out", compared) == 0
    output = capsys.readouterr().out
    assert "slim: trained already" in output
    assert f"{before['detectors'][0]['mAP']:.4f}" in output
    after = content(compared)
    for one in (*before["detectors"], *after["detectors"]):
        one.pop("memory_bytes")
    assert after == before


def test_other_weights_are_evaluated_again(
    compared: Path, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    best = checkpoint.load(out / "slim" / "best.pt")
    best["model"]["out.bias"] += 0.5
    checkpoint.write(out / "slim" / "best.pt", best)
    evaluated = []
    original = measure._evaluate
    monkeypatch.setattr(
        measure, "_evaluate", lambda entry, *rest: evaluated.append(entry.name) or original(entry, *rest)
    )
    assert compare(configs, "--out", out) == 0
    assert evaluated == ["slim"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_and_gone_on_with(
    number: signal.Signals,
    compared: Path,
    configs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The first detector is there, the second is stopped in the middle; then it is the one that was not."""
    out = tmp_path / "out"
    out.mkdir()
    shutil.copytree(compared / "slim", out / "slim")
    monkeypatch.setenv("TOY_INTERRUPT", f"10:{number:d}")
    assert compare(configs, "--out", out) == 128 + number
    assert "the same command goes on where it was stopped" in capsys.readouterr().err
    assert not (out / "compare.json").exists()
    assert checkpoint.load(out / "wide" / "last.pt")["iteration"] == 10
    assert "saved after step 10" in (out / "wide.log").read_text()
    times = json.loads((out / "times.json").read_text())
    assert set(times) == {"train wide"}
    # what the first attempt took is added to; longer than this test can take
    (out / "times.json").write_text(json.dumps({"train wide": 1e6}))
    monkeypatch.delenv("TOY_INTERRUPT")
    assert compare(configs, "--out", out) == 0
    found, whole = content(out)["detectors"][1], content(compared)["detectors"][1]
    assert found["training_seconds"] > 1e6
    for name in TIMES:
        del found[name], whole[name]
    found["checkpoint"] = whole["checkpoint"]
    assert found == whole


def test_a_run_killed_before_its_first_checkpoint_begins_anew(compared: Path, configs: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    for path in (out / "slim").iterdir():
        if path.name not in ("config.yaml", "env.txt"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert compare(configs, "--out", out) == 0
    assert content(out)["detectors"][0]["AP"] == content(compared)["detectors"][0]["AP"]
    shutil.rmtree(out / "slim")
    (out / "slim").mkdir()
    (out / "slim" / "thesis.txt").touch()
    assert "slim exists and is not an empty folder" in failure(capsys, configs, "--out", out, status=1)
    assert (out / "slim" / "thesis.txt").exists()


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_times_are_of_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr("detkit.comparison.times.time", clock)
    assert read_times(tmp_path) == {}
    with pytest.raises(KeyboardInterrupt), timed(tmp_path, "a"):  # noqa: PT012
        clock.now += 2.5
        raise KeyboardInterrupt
    clock.now += 100
    with timed(tmp_path, "a"):
        clock.now += 4
    with timed(tmp_path, "b"):
        clock.now += 1
    assert read_times(tmp_path) == {"a": 6.5, "b": 1}
    forget(tmp_path, "a")
    forget(tmp_path, "never begun")
    assert read_times(tmp_path) == {"b": 1}


def test_one_comparison_at_a_time_in_a_folder(compared: Path, configs: Path, capsys: pytest.CaptureFixture[str]):
    with held_by_another(compared / NAME) as number:
        said = failure(capsys, configs, "--out", compared, status=2)
    assert f"{compared} is being written by process {number} on " in said
