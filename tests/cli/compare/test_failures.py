"""detkit compare: what it refuses, and detectors that fail beside others."""

import shutil
from pathlib import Path

import pytest

from detkit.checkpoints import checkpoint
from detkit.cli import main
from detkit.comparison import detecting, job
from tests.cli.compare.builders import content, failure


def test_a_detector_that_fails_does_not_stop_the_others(
    compared: Path, configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("slim", "wide"):
        shutil.copytree(compared / name, tmp_path / "out" / name)
    own = tmp_path / "configs"
    shutil.copytree(configs, own)
    text = (configs / "wide.yaml").read_text()
    (own / "wrong.yaml").write_text(text.replace("HorizontalFlip: {p: 0.5}", "VerticalFlop: {p: 0.5}"))
    said = failure(capsys, own, "--out", tmp_path / "out", status=1)
    assert "wrong: training failed" in said
    assert "VerticalFlop" in said
    log = tmp_path / "out" / "wrong.log"
    assert str(log) in said
    assert "VerticalFlop" in log.read_text()
    found = content(tmp_path / "out")
    assert [one["name"] for one in found["detectors"]] == ["slim", "wide"]
    assert "VerticalFlop" in found["failed"]["wrong"]
    assert "VerticalFlop" in (tmp_path / "out" / "report.html").read_text()


def test_a_detector_that_breaks_when_it_is_measured(
    compared: Path, configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    shutil.copytree(compared, out)

    def breaks(config, *rest):
        if config.model.width == 4:
            raise RuntimeError("a bug\nof two lines")
        return detecting._cost(config, *rest)

    monkeypatch.setattr(job, "measure_cost", breaks)
    assert f"slim: RuntimeError: a bug of two lines; more in {out / 'slim.log'}" in failure(
        capsys, configs, "--out", out, status=1
    )
    assert "Traceback" in (out / "slim.log").read_text()
    assert [one["name"] for one in content(out)["detectors"]] == ["wide"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.yaml"], "no config nowhere.yaml"),
        (["{configs}/slim.yml"], "no config {configs}/slim.yml; did you mean '{configs}/slim.yaml'?"),
        (["{tmp}/empty"], "{tmp}/empty holds neither configs (*.yaml) nor folders of runs"),
        (["{tmp}/unsaved"], "{tmp}/unsaved: a run without a checkpoint best.pt"),
        (["{compared}/slim/best.pt"], "the folder of its run would be {compared}/slim"),
        (["{compared}/slim", "{configs}/slim.yaml"], "have one name, slim"),
        (
            ["{compared}/slim", "{tmp}/triangles"],
            "slim and triangles cannot be compared, their classes are not the same",
        ),
        (["{compared}/slim", "{tmp}/val"], "slim and val cannot be compared, their images are not the same"),
        (["{compared}/slim", "{tmp}/area"], "their metrics are not the same: voc, and voc07; evaluate.metric=voc sets"),
        (["{configs}", "train.itterations=3"], "train.itterations"),
        (["train.iterations=3"], "what to compare"),
        (["{configs}", "--rounds", "0"], "at least one"),
        (["{configs}", "--out", "{compared}/compare.csv"], "is a file"),
        (
            ["{configs}", "train.lr=0.5", "--out", "{compared}"],
            "slim/config.yaml was trained by: train.lr: 0.5, not 0.05",
        ),
        (["{tmp}/regions.yaml"], "data.proposals is empty"),
    ],
)
def test_wrong_inputs(
    arguments: list[str], message: str, configs: Path, compared: Path, toys: Path, tmp_path: Path, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "unsaved").mkdir()
    shutil.copy(compared / "slim" / "config.yaml", tmp_path / "unsaved")
    best = checkpoint.load(compared / "slim" / "best.pt")
    for name, change in (
        ("triangles", {"classes": ["circle", "triangle"], "best_scores": {"split": "val", "scores": {}}}),
        ("val", {"config": {**best["config"], "data": {**best["config"]["data"], "test": ["one"]}}}),
        ("area", {"config": {**best["config"], "evaluate": {"metric": "voc", "batch": 4}}}),
    ):
        checkpoint.write(tmp_path / name / "best.pt", {**best, **change})
    (tmp_path / "regions.yaml").write_text(
        "model: {name: fast_rcnn, backbone: {name: tiny}}\ntrain: {iterations: 1}\n" + f"data: {{root: {toys}}}\n"
    )
    places = {"configs": configs, "compared": compared, "tmp": tmp_path}
    own = [] if "--out" in arguments else ["--out", tmp_path / "out"]
    said = failure(capsys, *(argument.format(**places) for argument in arguments), *own)
    assert message.format(**places) in said
    assert not (tmp_path / "out").exists()


def test_a_page_that_fails_costs_nothing_else(compared, configs, capsys, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ValueError("of a\nname")

    monkeypatch.setattr(job, "write_comparison", broken)
    assert main(["compare", str(configs), "--out", str(compared)]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == (
        "warning: not written: report.html: ValueError: of a name; all else is complete"
    )
    assert "slim" in said.out
