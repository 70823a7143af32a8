"""detkit export: what it writes and prints, and what it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import detkit
from detkit.checkpoints import checkpoint
from detkit.cli import main
from detkit.config import Config, DataConfig, TrainConfig
from detkit.models import build_detector
from detkit.models.compress import LowRankLinear
from tests.builders import random_image, tiny_faster_rcnn_config, tiny_ssd_config
from tests.matching import assert_same_detections
from tests.toys.toy import CLASSES, draw_toys

TOOL = Path(__file__).parents[2] / "tools" / "export.py"


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def best(tmp_path: Path) -> Path:
    """Write the checkpoint of an untrained Faster R-CNN that finds something."""
    draw_toys(tmp_path / "toys")
    torch.manual_seed(0)
    model = tiny_faster_rcnn_config()
    detector = build_detector(model, CLASSES)
    for name in ("classifier", "regressor"):
        torch.nn.init.normal_(detector.get_submodule(f"head.{name}").weight, std=0.1)  # pyright: ignore
    config = Config(model, DataConfig(root=str(tmp_path / "toys")), TrainConfig(iterations=7, workers=0))
    checkpoint.save(tmp_path / "best.pt", detector, config, iteration=7, metrics={"mAP": 0.5})
    return tmp_path / "best.pt"


def failure(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["export", *argv]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    return output.err


def test_the_file_is_a_checkpoint_like_any_other(best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", "best.pt", "--svd", "fc6=30, regressor=8"]) == 0
    text = capsys.readouterr().out
    rows = [re.findall(r"[\w.,]+", line) for line in text.splitlines() if line.startswith("│")]
    # 864 -> 256 and 256 -> 8 with bias; the second has all of its rank
    assert [row[:5] for row in rows] == [
        ["fc6", "30", "221,440", "33,856", rows[0][4]],
        ["head.regressor", "8", "2,056", "2,120", "0.0000"],
    ]
    assert 0.5 < float(rows[0][4]) < 1
    assert all(float(value) > 0 for row in rows for value in row[5:])
    difference = re.search(r"scores ([\d.e-]+), boxes ([\d.e-]+) pixels", text)
    assert difference is not None
    assert float(difference[1]) > 1e-3
    content = torch.load("best-svd.pt", weights_only=True)
    assert content["config"]["model"]["svd"] == {"fc6": 30, "head.regressor": 8}
    assert (content["iteration"], content["metrics"], "training" in content) == (7, {}, False)
    total = sum(parameter.numel() for parameter in detkit.load("best-svd.pt", "cpu").parameters())
    assert f"best-svd.pt: {total:,} parameters of {total + 221440 - 33856 + 2056 - 2120:,}" in text

    detector = detkit.load("best-svd.pt", "cpu")
    assert isinstance(detector.get_submodule("head.tail.1"), LowRankLinear)
    assert main(["evaluate", "best-svd.pt", "--out", "scored"]) == 0
    assert "mAP" in json.loads((tmp_path / "scored" / "metrics.json").read_text())
    sample_image = str(tmp_path / "toys" / "JPEGImages" / "test000.jpg")
    assert main(["detect", "best-svd.pt", sample_image, "--score", "0.1", "--out", "found"]) == 0
    assert (tmp_path / "found" / "test000.jpg").is_file()
    # once more, another layer of it
    assert main(["export", "best-svd.pt", "--svd", "fc7=5", "--out", "both.pt"]) == 0
    assert torch.load("both.pt", weights_only=True)["config"]["model"]["svd"] == {
        "fc6": 30,
        "head.regressor": 8,
        "fc7": 5,
    }
    assert len(detkit.load("both.pt", "cpu").detect(random_image(40, 50)[0])) == 1


def test_full_rank_detects_the_same(best: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["export", "best.pt", "--svd", "fc6=256,fc7=256", "--out", "x/same.pt"]) == 0
    difference = re.search(r"scores ([\d.e-]+), boxes ([\d.e-]+) pixels", capsys.readouterr().out)
    assert difference is not None
    assert float(difference[1]) < 1e-5
    assert float(difference[2]) < 1e-3
    for seed in range(3):
        sample_image = random_image(60, 70, seed)[0]
        (one,), (other,) = (
            detkit.load(path, "cpu").detect(sample_image, score=0.1) for path in ("best.pt", "x/same.pt")
        )
        assert one.labels.numel()
        close = {"score_atol": 1e-4, "box_atol": 1e-3, "box_rtol": 1e-4}
        assert_same_detections(one.image(0), other.image(0), score=0.1, iou=0.45, keep=200, **close)


def test_refusals(best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ssd = Config(tiny_ssd_config(), DataConfig(root=""), TrainConfig(iterations=1))
    checkpoint.save("ssd.pt", build_detector(ssd.model, CLASSES), ssd)
    Path("noise.pt").write_bytes(b"no checkpoint")
    Path("there.pt").write_bytes(b"precious")
    for argv, text in (
        (["best.pt"], "--svd LAYER=RANK,... compresses fully connected layers; best.pt has fc6 (head."),
        (["best.pt", "--svd", "fc8=3"], "no fully connected layer 'fc8'; there are fc6 (head.tail.1, 864 -> 256), fc7"),
        (["best.pt", "--svd", "fc6=257"], "fc6: rank 257 of 864 -> 256 is not in 1..256"),
        (["best.pt", "--svd", "fc6=0"], "fc6: rank 0 of 864 -> 256 is not in 1..256"),
        (["best.pt", "--svd", "fc6"], "--svd fc6: 'fc6' is not LAYER=RANK; an example: --svd fc6=1024,fc7=256"),
        (["best.pt", "--svd", "fc6=-3"], "'fc6=-3' is not LAYER=RANK"),
        (["best.pt", "--svd", "fc6=3,fc6=4"], "--svd fc6=3,fc6=4: fc6 is named twice"),
        (["best.pt", "--svd", "fc6=3", "--out", "there.pt"], "there.pt exists already; remove it, or give another"),
        (["best.pt", "--svd", "fc6=3", "--out", "best.pt"], "best.pt exists already"),
        (["none.pt", "--svd", "fc6=3"], "no checkpoint none.pt"),
        (["noise.pt", "--svd", "fc6=3"], "noise.pt: not a detkit checkpoint"),
        (["ssd.pt", "--svd", "fc6=3"], "ssd.pt: ssd has no region head; --svd is for detectors that have one"),
        (
            ["ssd.pt"],
            "what to export? --onnx FILE.onnx writes the network as ONNX; --half FILE.pt a checkpoint of half the",
        ),
        (["ssd.pt"], "ssd has no region head for it"),
        (["best.pt", "--onnx", "x.onnx", "--svd", "fc6=3"], "--onnx and --svd: one at a time"),
        (["best.pt", "--onnx", "x.onnx", "--out", "y.pt"], "--out y.pt: goes with --svd"),
        (["best.pt", "--half", "x.pt", "--svd", "fc6=3"], "--svd and --half: one at a time"),
        (["best.pt", "--half", "x.pt", "--out", "y.pt"], "--out y.pt: goes with --svd; --half names its file itself"),
        (["best.pt", "--half", "there.pt"], "there.pt exists already"),
    ):
        assert text in failure(capsys, *argv)
    assert Path("there.pt").read_bytes() == b"precious"
    assert not Path("best-svd.pt").exists()


def test_half_precision_detects_nearly_the_same(best: Path, capsys: pytest.CaptureFixture[str]):
    whole = torch.load("best.pt", weights_only=True)
    whole["config"]["train"]["amp"] = "bf16"  # of this machine
    checkpoint.write("last.pt", {**whole, "training": {"optimizer": {}}})
    assert main(["export", "last.pt", "--half", "x/half.pt"]) == 0
    size, before = Path("x/half.pt").stat().st_size, Path("last.pt").stat().st_size
    assert f"x/half.pt: {size / 1e6:.1f} MB" in capsys.readouterr().out
    assert size < 0.6 * before
    half = torch.load("x/half.pt", weights_only=True)
    assert half["config"]["train"]["amp"] == "auto"
    whole["config"]["train"]["amp"] = "auto"
    assert {key: value for key, value in half.items() if key != "model"} == {
        key: value for key, value in whole.items() if key != "model"
    }
    for name, tensor in half["model"].items():
        assert tensor.dtype == (torch.float16 if tensor.ndim > 1 else whole["model"][name].dtype), name
    detector = detkit.load("x/half.pt", "cpu")
    for name, tensor in detector.state_dict().items():
        assert tensor.dtype == whole["model"][name].dtype
        torch.testing.assert_close(tensor, whole["model"][name], rtol=1e-3, atol=1e-6)


def test_a_weight_beyond_half_precision_is_named(best: Path, capsys: pytest.CaptureFixture[str]):
    content = torch.load("best.pt", weights_only=True)
    content["model"]["head.regressor.weight"][0, 0] = 7e4
    checkpoint.write("large.pt", content)
    assert "large.pt: head.regressor.weight has values beyond half" in failure(capsys, "large.pt", "--half", "x.pt")
    assert not Path("x.pt").exists()


def test_onnx(best: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    assert main(["export", "best.pt", "--onnx", "new/toy.onnx"]) == 0
    output = capsys.readouterr()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.out.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["logits_c3", "deltas_c3", "anchors_c3", "map_c3", "logits", "deltas"]
    assert all(float(row[3]) <= 1e-4 * float(row[2]) for row in rows)
    assert output.err == ""
    for end in ("rpn", "head"):
        size = Path(f"new/toy-{end}.onnx").stat().st_size / 1e6
        assert f"new/toy-{end}.onnx: {size:.1f} MB" in output.out
    assert "onnxruntime's outputs from torch's on a random input, float32, CPU" in output.out
    assert "new/toy-rpn.onnx exists already" in failure(capsys, "best.pt", "--onnx", "new/toy.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", "best.pt", "--onnx", "toy.onnx"]) == 0
    text = capsys.readouterr().out
    assert "not compared with torch: onnxruntime is not installed; pip install onnxruntime" in text
    assert "MB" in text


def test_onnx_without_its_packages(best: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    text = "--onnx needs onnx; pip install onnx onnxscript onnxruntime"
    assert text in failure(capsys, "best.pt", "--onnx", "toy.onnx")


def test_the_tool_is_the_command():
    out = subprocess.run([sys.executable, TOOL, "--help"], capture_output=True, text=True, check=True).stdout
    assert "LAYER=RANK" in out
