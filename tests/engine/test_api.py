"""detkit.train and detector.evaluate: the command line's training and testing, from Python."""

import json
import os
from pathlib import Path

import pytest

import detkit
from detkit.data.formats import open_root
from detkit.errors import UserError
from detkit.evaluation import VOCResult
from detkit.experiment import load_config, override_texts
from detkit.models import MODELS
from tests.toys.toy import Toy


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_from_python_is_that_of_the_command(config: Path, train, tmp_path: Path) -> None:
    """By file or by Config, with sections or dotted keys, and in one go or two."""
    assert train("train.iterations=4", "train.lr=0.02", "--out", tmp_path / "command") == 0
    expected = (tmp_path / "command" / "log.jsonl").read_text().splitlines()
    changes = {"train": {"iterations": 4, "lr": 0.02}}
    by_file = detkit.train(config, out="file", **changes)
    by_config = detkit.train(load_config(config), **{"train.iterations": 4, "train.lr": 0.02})
    detkit.train(config, out="short", train={"iterations": 3, "lr": 0.02})
    resumed = detkit.train(resume="short", train={"iterations": 4})
    assert [run.folder for run in (by_file, by_config, resumed)] == [Path("file"), Path("runs/toy-1"), Path("short")]

    def losses(records: list[dict]) -> list:
        return [record["loss"] for record in records if "loss" in record]

    assert losses(by_file.log) == losses(by_config.log) == losses([*map(json.loads, expected)])
    assert by_file.best.is_file()
    assert by_file.metrics["mAP"] == json.loads((tmp_path / "command" / "metrics.json").read_text())["mAP"]
    assert repr(by_file) == f"<TrainedRun file: mAP {by_file.metrics['mAP']:.4f}>"
    untested = detkit.train(config, out="untested", train={"iterations": 2}, data={"test": []})
    assert untested.metrics == {}
    assert repr(untested) == "<TrainedRun untested: not tested>"


def test_what_is_wrong_is_one_line(config: Path) -> None:
    for arguments, keys, words in (
        ((), {}, "train: give a config"),
        ((config,), {"resume": "x"}, "train: give a config"),
        ((), {"resume": "x", "out": "y"}, "leave out away"),
        (("missing.yaml",), {}, "missing.yaml"),
        ((config,), {"train": {"iteration": 5}}, "unknown key 'train.iteration'; did you mean 'iterations'"),
        ((config,), {"train": 5}, "train"),
        ((config,), {"train": {"lr": object()}}, "train.lr: <object"),
        ((config,), {"data": {"root": Path("nowhere")}}, "no data set at nowhere"),
    ):
        with pytest.raises(UserError) as error:
            detkit.train(*arguments, **keys)
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    assert os.listdir() == []


def test_overrides_as_arguments() -> None:
    values = {"train": {"lr": 1e-5, "amp": None}, "data.root": Path("a b"), "data": {"classes": ["yes", "1"]}}
    assert override_texts(values) == [
        "train.lr=1e-05",
        "train.amp=null",
        'data.root="a b"',
        'data.classes=["yes", "1"]',
    ]


def test_a_detector_evaluates_itself(trained: Path, toys: Path) -> None:
    assert "toy" in MODELS
    detector = detkit.load(trained / "best.pt", "cpu")
    expected = json.loads((trained / "metrics.json").read_text())
    result = detector.evaluate()
    assert isinstance(result, VOCResult)
    assert result.to_dict()["mAP"] == expected["mAP"]
    assert result.to_dict()["AP"] == expected["AP"]
    for data in (toys, str(toys), open_root(toys, ["test"])):
        assert detector.evaluate(data).mAP == result.mAP
    assert detector.evaluate(toys, split="val", metric="coco").to_dict()["metric"] == "coco"
    with pytest.raises(UserError, match="'voc08' is not one of voc07, voc, coco"):
        detector.evaluate(metric="voc08")
    with pytest.raises(UserError, match="no split 'tests'"):
        detector.evaluate(toys, split="tests")
    detector.experiment = None
    with pytest.raises(UserError, match="on which data"):
        detector.evaluate()
    Toy.calls = 0
