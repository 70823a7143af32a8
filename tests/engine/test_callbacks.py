"""What hears of a run: callbacks, loggers, the page of live curves; none of them changes it."""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import detkit
from detkit.engine.callbacks import Beginning
from detkit.engine.log import read_log
from detkit.engine.trained import TrainedRun
from detkit.errors import Incomplete, UserError
from detkit.report.live import live_page
from detkit.runtime.signals import Stopped
from tests.pages import check_alone, data_of

SHORT: dict[str, Any] = {"iterations": 24}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Heard(detkit.Callback):
    """Notes all that it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_begin(self, run: Beginning) -> None:
        self.events.append(("begin", run.start, run.iterations, run.folder.name, run.config.train.lr))

    def on_step(self, iteration: int, values: Mapping[str, float]) -> None:
        self.events.append(("step", iteration, *values))

    def on_evaluation(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        self.events.append(("evaluation", iteration, metrics["mAP"]))

    def on_end(self, run: TrainedRun, error: BaseException | None) -> None:
        self.events.append(("end", run.metrics.get("mAP"), type(error).__name__))


def test_a_callback_hears_steps_evaluations_and_the_end(config: Path) -> None:
    heard = Heard()
    run = detkit.train(config, out="run", train=SHORT, callbacks=[heard])
    by_kind = {kind: [event[1:] for event in heard.events if event[0] == kind] for kind, *_ in heard.events}
    assert by_kind["begin"] == [(0, 24, "run", 0.05)]
    assert [event[0] for event in by_kind["step"]] == [20, 24]
    assert {"loss", "lr", "images_per_second", "data_share"} <= set(by_kind["step"][0])
    assert by_kind["evaluation"] == [(one["iteration"], one["mAP"]) for one in run.log if "mAP" in one]
    assert by_kind["end"] == [(run.metrics["mAP"], "NoneType")]
    assert heard.events[-1][0] == "end"


class Broken(Heard):
    def on_step(self, iteration: int, values: Mapping[str, float]) -> None:
        super().on_step(iteration, values)
        raise ValueError("no\nroom")


def test_what_a_callback_raises_costs_the_run_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All is written, the others hear the rest, and it is said at once and at the end."""
    plain = detkit.train(config, out="plain", train=SHORT)
    broken, other = Broken(), Heard()
    with pytest.raises(Incomplete) as failed:
        detkit.train(config, out="run", train=SHORT, callbacks=[broken, other])
    said = "callback Broken: on_step: ValueError: no room"
    assert str(failed.value) == f"{said}; the run itself is complete in run"
    assert f"warning: {said}; it hears no more" in capsys.readouterr().err
    assert [event[0] for event in broken.events if event[0] != "evaluation"] == ["begin", "step"]
    assert other.events[-1][0] == "end"
    assert TrainedRun(Path("run")).metrics["mAP"] == plain.metrics["mAP"]
    kept = [{name: one[name] for name in ("iteration", "loss", "mAP") if name in one} for one in plain.log]
    assert [
        {n: one[n] for n in ("iteration", "loss", "mAP") if n in one} for one in read_log(Path("run/log.jsonl"))
    ] == kept


class Stopping(Heard):
    def on_step(self, iteration: int, values: Mapping[str, float]) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_callback_can_stop_the_run_and_it_goes_on(config: Path) -> None:
    stopping = Stopping()
    with pytest.raises(Stopped):
        detkit.train(config, out="run", train={"iterations": 60, "evaluate_every": 0}, callbacks=[stopping])
    assert stopping.events == [("begin", 0, 60, "run", 0.05), ("end", None, "Stopped")]
    page = Path("run/live.html").read_text()
    assert "Ended early: SIGINT" in check_alone(page).text
    heard = Heard()
    detkit.train(resume="run", callbacks=[heard])
    assert heard.events[0][:3] == ("begin", 21, 60)
    again = Heard()
    detkit.train(resume="run", callbacks=[again])  # only its test
    assert [event[0] for event in again.events] == ["begin", "end"]


def test_no_callback_is_one_line(config: Path) -> None:
    with pytest.raises(UserError, match=r"callbacks: <built-in function print> is no detkit\.Callback"):
        detkit.train(config, out="run", callbacks=[print])  # pyright: ignore[reportArgumentType]
    assert not Path("run").exists()


# the page of live curves


def test_live_page_has_the_curves_and_stops_renewing_at_the_end(config: Path) -> None:
    class Peek(detkit.Callback):
        def on_evaluation(self, iteration: int, metrics: Mapping[str, Any]) -> None:
            self.page = Path("run/live.html").read_text()

    peek = Peek()
    run = detkit.train(config, out="run", train=SHORT, callbacks=[peek])
    page = Path("run/live.html").read_text()
    during, after = check_alone(peek.page), check_alone(page.replace('href="report.html"', 'href="#loss"'))
    assert (data_of(peek.page)["renew"] > 0, data_of(page)["renew"]) == (True, 0)
    assert "24 of 24" in after.text
    assert f"Ended: mAP {run.metrics['mAP']:.4f} on the test split" in after.text
    assert "the page renews itself" in during.text
    assert {"loss", "map", "rate", "speed"} <= set(after.ids)
    assert after.text.count("at step") == 3  # one dot an evaluation
    assert '<a href="report.html">' in page


def test_live_page_without_a_val_split_awaits_none(config: Path) -> None:
    class Peek(detkit.Callback):
        def on_step(self, iteration: int, values: Mapping[str, float]) -> None:
            self.page = Path("run/live.html").read_text()

    peek = Peek()
    detkit.train(config, data={"val": []}, out="run", train=SHORT, callbacks=[peek])
    assert "Not evaluated on val." in check_alone(peek.page).text
    assert "Not evaluated on val." in Path("run/live.html").read_text()
    assert "Nothing yet." in live_page("run", [], 24)
    assert "Not evaluated on val." in live_page("run", [], 24, ended=True)


# loggers


def test_what_a_logger_needs_is_said_before_the_folder_is_made(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"train\.loggers: wandb: .*; pip install wandb"):
        detkit.train(config, out="run", train={**SHORT, "loggers": ["wandb"]})
    with pytest.raises(UserError, match=r"train\.loggers: 'tensorbord' is not one of tensorboard, wandb, mlflow"):
        detkit.train(config, out="run", train={**SHORT, "loggers": ["tensorbord"]})
    assert not Path("run").exists()


def test_tensorboard_shows_one_curve_over_a_resume(config: Path) -> None:
    """A run that was killed behind its last.pt goes on: each step is there once, with the values of log.jsonl."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Killed(detkit.Callback):
        def on_step(self, iteration: int, values: Mapping[str, float]) -> None:
            if iteration == 40:
                raise KeyboardInterrupt  # nothing is saved

    keys = {"iterations": 60, "evaluate_every": 30, "save_every": 0, "loggers": ["tensorboard"]}
    with pytest.raises(KeyboardInterrupt):
        detkit.train(config, out="run", train=keys, callbacks=[Killed()])
    run = detkit.train(resume="run")
    shown = EventAccumulator("run/tensorboard")
    shown.Reload()
    values = {tag: [(one.step, one.value) for one in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    assert values["train/loss"] == [(one["iteration"], pytest.approx(one["loss"])) for one in run.log if "loss" in one]
    assert values["val/mAP"] == [(one["iteration"], pytest.approx(one["mAP"])) for one in run.log if "mAP" in one]
    assert values["test/mAP"] == [(60, pytest.approx(run.metrics["mAP"]))]
    assert {"train/lr", "train/images_per_second", "val/AP/circle", "test/AP/square"} <= set(values)


class FakeRun:
    """What wandb.init returned: recorded."""

    id = "abc"

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.logged, self.code = arguments, list[dict[str, Any]](), None

    def define_metric(self, name: str, step_metric: str | None = None) -> None: ...

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.code = exit_code


def test_wandb_goes_on_with_the_same_run(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[FakeRun] = []
    fake = SimpleNamespace(init=lambda **arguments: runs.append(FakeRun(**arguments)) or runs[-1])
    monkeypatch.setitem(sys.modules, "wandb", fake)
    keys = {"iterations": 60, "evaluate_every": 0, "loggers": ["wandb"]}
    with pytest.raises(Stopped):
        detkit.train(config, out="run", train=keys, callbacks=[Stopping()])
    run = detkit.train(resume="run")
    first, second = runs
    assert first.arguments["id"] is None
    assert first.arguments["config"]["train"]["lr"] == 0.05
    assert (second.arguments["id"], second.arguments["resume"]) == ("abc", "allow")
    assert (first.code, second.code) == (1, 0)
    steps = [one["iteration"] for one in [*first.logged, *second.logged] if "train/loss" in one]
    assert steps == [20, 40, 60]
    assert second.logged[-1]["test/mAP"] == run.metrics["mAP"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_library_itself(name: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed, without a server."""
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Path("mlruns").resolve().as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    keys = {"iterations": 60, "evaluate_every": 0, "loggers": [name]}
    with pytest.raises(Stopped):
        detkit.train(config, out="run", train=keys, callbacks=[Stopping()])
    before = json.loads(Path("run/loggers.json").read_text())
    run = detkit.train(resume="run")
    assert json.loads(Path("run/loggers.json").read_text()) == before
    if name == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient()
        found = client.get_run(before["mlflow"])
        assert found.info.status == "FINISHED"
        assert found.data.params["train.lr"] == "0.05"
        assert found.data.metrics["test/mAP"] == pytest.approx(run.metrics["mAP"])
        losses = [(one.step, one.value) for one in client.get_metric_history(before["mlflow"], "train/loss")]
        assert losses == [(one["iteration"], one["loss"]) for one in run.log if "loss" in one]
    else:
        assert len([*Path("run/wandb").glob("offline-run-*")]) == 2
