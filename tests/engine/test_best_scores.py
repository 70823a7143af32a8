"""`--score best`: the thresholds of the best F1 come with a checkpoint, and say of which split they are."""

import json
from pathlib import Path

import pytest

import detkit
from detkit.checkpoints import checkpoint
from detkit.cli import main
from detkit.data.opening import open_dataset
from detkit.errors import UserError
from detkit.evaluation import best_scores
from detkit.export.half import export_half
from detkit.inference.evaluate import evaluate
from detkit.inference.thresholds import score_thresholds
from detkit.models import Thresholds
from tests.toys.fixtures import Train


def expected(path: Path, split: str) -> dict[str, float]:
    detector, config = checkpoint.load_detector(path)
    dataset = open_dataset(config.data, split, detector.classes)
    return best_scores(evaluate(detector, dataset, config).result, config.detect.score_threshold)


def test_they_are_of_val(trained: Path, tmp_path: Path) -> None:
    scores = expected(trained / "best.pt", "val")
    assert scores
    for name in ("best.pt", "last.pt"):
        thresholds = checkpoint.thresholds_of(checkpoint.load(trained / name))
        assert thresholds is not None
        assert thresholds.split == "val"
    assert detkit.load(trained / "best.pt").best_scores == Thresholds("val", pytest.approx(scores))
    export_half(trained / "best.pt", tmp_path / "half.pt")
    assert detkit.load(tmp_path / "half.pt").best_scores == Thresholds("val", pytest.approx(scores))


def test_they_are_of_test_where_there_is_no_val(train: Train, tmp_path: Path, capsys) -> None:
    assert train("train.iterations=4", "data.val=[]", "--out", tmp_path / "run") == 0
    assert "--score best: the best F1 on test: " in capsys.readouterr().out
    thresholds = checkpoint.thresholds_of(checkpoint.load(tmp_path / "run" / "best.pt"))
    assert thresholds == Thresholds("test", pytest.approx(expected(tmp_path / "run" / "best.pt", "test")))
    assert "best_scores" not in checkpoint.load(tmp_path / "run" / "last.pt")


def test_detect_takes_them(trained: Path, toys: Path, tmp_path: Path, capsys) -> None:
    images, out = sorted((toys / "JPEGImages").glob("test*"))[:4], tmp_path / "out"
    command = ["detect", str(trained / "best.pt"), *map(str, images), "--out", str(out), "--json"]
    assert main([*command, "--score", "best"]) == 0
    scores = expected(trained / "best.pt", "val")
    said = capsys.readouterr().out
    assert "score of the best F1 on val: " in said
    detector = detkit.load(trained / "best.pt")
    limits = {name: scores.get(name, 0.5) for name in detector.classes}
    everything = detector.detect(images, score=0.0)
    kept = [sum(entry.score > limits[entry.name] for entry in found) for found in everything]
    listed = json.loads((out / "detections.json").read_text())
    assert listed["score"] == "best"
    assert listed["class_scores"] == pytest.approx(scores)
    assert [len(image["detections"]) for image in listed["images"]] == kept
    assert [len(found) for found in detector.detect(images, score="best")] == kept
    # one class is asked for more
    name = detector.classes[0]
    assert main([*command, "--score", f"best,{name}=1"]) == 0
    assert all(
        name != found["class"]
        for i in json.loads((out / "detections.json").read_text())["images"]
        for found in i["detections"]
    )


def test_a_class_without_has_the_usual_one(trained: Path) -> None:
    detector = detkit.load(trained / "best.pt")
    detector.best_scores = Thresholds("val", {"circle": 0.25})
    assert score_thresholds(detector, "best").tolist() == [0.25, 0.5]
    assert score_thresholds(detector, "best", thresholds={"circle": 0.75}).tolist() == [0.75, 0.5]
    detector.best_scores = None
    with pytest.raises(UserError, match="score best: the detector has no such thresholds; training keeps them"):
        score_thresholds(detector, "best")
    with pytest.raises(UserError, match="score 'good' is neither a number nor 'best'"):
        score_thresholds(detector, "good")


def test_what_cannot_be_is_one_line(trained: Path, toys: Path, tmp_path: Path, capsys) -> None:
    image = str(next((toys / "JPEGImages").glob("*.jpg")))
    assert main(["detect", "voc", image, "--score", "best", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: score best: the detector has no such thresholds")
    assert main(["detect", str(trained / "best.pt"), image, "--score", "best", "--explain"]) == 2
    assert "--explain takes one score threshold" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    content = checkpoint.load(trained / "best.pt")
    for broken in ({"split": "val"}, {"split": "x", "scores": {}}, {"split": "val", "scores": {"bird": 0.5}}, 3):
        checkpoint.write(tmp_path / "broken.pt", {**content, "best_scores": broken})
        with pytest.raises(UserError, match="damaged checkpoint: best_scores is not a split"):
            checkpoint.load(tmp_path / "broken.pt")
