"""Backends side by side: `compare CHECKPOINT FILE.onnx`."""

import json
from pathlib import Path

import pytest
import torch

from detkit.cli import main
from detkit.comparison.outputs import _differences
from detkit.export.onnx import Form, export_onnx
from detkit.structures import DetectionSet
from tests import zoo
from tests.backends import INSTALLED
from tests.builders import save_checkpoint
from tests.data.roots import make_root, xml


def test_differences() -> None:
    ids, classes = ("a", "b"), ("cat", "dog")
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10], [0, 0, 5, 5]])
    scores, labels, image = torch.tensor([0.9, 0.5, 0.8, 0.05]), torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 1])
    ours = DetectionSet(boxes, scores, labels, image, ids, classes)
    assert _differences(ours, ours) == (0, 0, 0, 3)  # one scores too little
    moved = boxes + torch.tensor([[0.0, 0, 0, 0.5], [0, 0, 0, 0], [0, 0, 0, 0], [99, 99, 99, 99]])
    theirs = DetectionSet(moved, scores - 0.125, torch.tensor([0, 0, 1, 1]), image, ids, classes)
    assert _differences(ours, theirs) == (0.5, 0.125, 1, 3)  # a dog there is no dog here
    assert _differences(ours, ours.part(ours.image == 1)) == (0, 0, 2, 3)


def test_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    if not INSTALLED:
        pytest.skip("needs onnxruntime or openvino")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    objects = {"1": xml([("a", (1, 1, 20, 20))]), "2": xml([("b", (10, 10, 30, 30))])}
    root = make_root(tmp_path / "animals", objects, {"test": ["1", "2"]})
    Path("run").mkdir()
    save_checkpoint(Path("run/best.pt"), zoo.trained("ssd"))
    export_onnx("run/best.pt", "ssd.onnx")
    export_onnx("run/best.pt", "half.onnx", Form(fp16=True))
    keys = [f"data.root={root}", "data.format=voc", "train.workers=0"]
    assert main(["compare", "run", "ssd.onnx", "half.onnx", *keys, "--out", "out"]) == 0
    assert "largest differences from the first line's detections" in capsys.readouterr().out
    outputs = json.loads(Path("out/outputs.json").read_text())["outputs"]
    names = ["run/best.pt"] * (1 + len(INSTALLED)) + ["ssd.onnx"] * len(INSTALLED) + ["half.onnx"] * len(INSTALLED)
    assert [one["file"] for one in outputs] == names
    for one in outputs:
        assert one["count"] > 0
        exact = one["file"] != "half.onnx"
        assert one["boxes"] < (1e-2 if exact else 2)
        assert one["scores"] < (1e-4 if exact else 0.05)
        assert one["mAP"] == pytest.approx(outputs[0]["mAP"], abs=1e-3 if exact else 0.2)
        assert not (exact and one["missing"])
    assert outputs[0]["boxes"] == outputs[0]["scores"] == 0
    for words, arguments in (
        ("ssd.onnx: the first file is compared with, on torch: name its checkpoint", ["ssd.onnx", "run"]),
        ("--split val goes with .onnx files", ["run", "--split", "val"]),
        ("no file none.onnx", ["run", "none.onnx", *keys]),
        ("backend 'openvin' is not one of", ["run", *keys, "--backend", "openvin"]),
    ):
        assert main(["compare", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
