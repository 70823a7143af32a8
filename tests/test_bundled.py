"""Detectors that come with detkit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from matplotlib.cbook import get_sample_data

import detkit
from detkit.backbones import create_backbone
from detkit.bundled import BUNDLED, FOLDER, find_bundled
from detkit.checkpoints import checkpoint
from detkit.checkpoints.describe import published_weights
from detkit.cli import main
from detkit.config import BackboneConfig
from detkit.data.formats import open_root
from detkit.data.voc import VOC_CLASSES
from detkit.errors import UserError
from detkit.inference.evaluate import evaluate
from detkit.models import build_detector
from tests.real_data import DATA, needs


def person() -> str:
    """A photo of a woman, which comes with matplotlib."""
    with get_sample_data("grace_hopper.jpg") as file:
        return file.name


@pytest.mark.parametrize("name", BUNDLED)
def test_each_is_a_small_file_that_detects(name: str) -> None:
    content = checkpoint.load(name)
    assert (FOLDER / f"{name}.pt").stat().st_size <= 13e6
    assert content["config"]["model"]["name"] == BUNDLED[name]
    assert "training" not in content
    assert content["config"]["train"]["amp"] == "auto"  # bf16 is slow where the processor has none
    assert all(tensor.dtype == torch.float16 for tensor in content["model"].values() if tensor.ndim > 1)
    assert name in [source.name for source in published_weights(BUNDLED[name])]
    assert "/" not in json.dumps(content["config"]).replace("data/VOC2007", "")  # paths of nobody's machine


def test_no_other_file_is_there() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(BUNDLED)


def test_voc_from_python_and_from_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    detector = detkit.load("voc")
    assert detector.classes == VOC_CLASSES
    assert not detector.training
    (found,) = list(detector.detect(person()))
    _, scores, labels = found.image(0)
    assert detector.classes[labels[0]] == "person"
    assert scores[0] > 0.5
    assert main(["detect", "voc", person(), "--json"]) == 0
    (image,) = json.loads(Path("detections/detections.json").read_text())["images"]
    assert image["detections"][0]["class"] == "person"
    capsys.readouterr()


@needs("voc2012_sample")
def test_voc_on_other_images() -> None:
    """110 images, some of which it may have learned from: no figure, but enough to see that nothing is upside down."""
    detector = detkit.load("voc")
    dataset = open_root(DATA / "voc2012_sample", ["all"])
    result = evaluate(detector, dataset, detector.experiment, torch.device("cpu")).result
    assert result.mAP > 0.4


def test_a_file_of_that_name_wins_and_a_folder_does_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("voc").mkdir()  # such as a data set
    assert find_bundled("voc") == FOLDER / "voc.pt"
    Path("voc").rmdir()
    content = checkpoint.load("voc")
    torch.save({**content, "iteration": 7}, "voc")
    assert find_bundled("voc") is None
    assert checkpoint.load("voc")["iteration"] == 7


def test_training_starts_from_it(tmp_path: Path, capsys) -> None:
    content = checkpoint.load("voc")
    config = checkpoint.build(content, "voc")[1]
    config.model.backbone.weights = None
    detector = build_detector(config.model, ("ace", "king"))
    checkpoint.start_from(detector, "voc")
    assert "tensors from voc; new for other classes: " in capsys.readouterr().err
    for name, tensor in detector.state_dict().items():
        if not name.startswith(detector.class_layers):
            assert torch.equal(tensor, content["model"][name].to(tensor.dtype)), name


def test_a_backbone_starts_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    backbone = create_backbone(BackboneConfig("mobilenet_v2", "voc"))
    assert "tensors from voc" in capsys.readouterr().err
    expected = checkpoint.load("voc")["model"]
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, expected[f"backbone.{name}"].to(tensor.dtype)), name
    with pytest.raises(UserError, match=r"^voc: .*; the file belongs to mobilenet_v2$"):
        create_backbone(BackboneConfig("resnet18", "voc"))
    with pytest.raises(UserError, match=r"model.backbone.channels: bgr, but the first layer of .*voc.* reads RGB"):
        create_backbone(BackboneConfig("mobilenet_v2", "voc", "bgr"))


def test_a_name_that_is_none(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^no checkpoint vox; did you mean 'voc'\?$"):
        detkit.load("vox")
    with pytest.raises(UserError, match=r"^no checkpoint runs/voc$"):
        detkit.load("runs/voc")


def test_export_and_half_of_it(tmp_path: Path, monkeypatch, capsys) -> None:
    """What takes a checkpoint takes the name, too."""
    monkeypatch.chdir(tmp_path)
    assert main(["export", "voc", "--half", "mine.pt"]) == 0
    shutil.copy(FOLDER / "voc.pt", "theirs.pt")
    mine, theirs = checkpoint.load("mine.pt")["model"], checkpoint.load("theirs.pt")["model"]
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    capsys.readouterr()
