"""detkit inside: the page, its pictures, and what it refuses."""

import re
from pathlib import Path

import cv2
import pytest
import torch

from detkit.backbones import create_backbone
from detkit.cli import run_command
from detkit.config import BackboneConfig
from detkit.data.shapes import draw_shapes
from tests.inside.small import image

pytest.importorskip("captum")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("image.png", image(40))
    torch.manual_seed(0)
    torch.save(create_backbone(BackboneConfig("tiny")).state_dict(), "tiny.pth")
    return tmp_path


def run(*arguments: str) -> int:
    return run_command("inside", [*arguments, "--device", "cpu"])


def test_page_of_a_backbone_and_a_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_shapes(folder / "shapes", {"train": 10})
    given = ("tiny", "image.png", "--weights", "tiny.pth", "--layer", "stem.0.2", "--unit", "3", "--data", "shapes")
    assert run(*given) == 0
    text = (folder / "inside" / "inside.html").read_text()
    page = check_pictures(text)
    assert "unit 3: strongest patches" in page
    assert "deconvnet needs max pooling" in page
    assert (folder / "inside" / "strongest.pt").is_file()
    assert (
        len(list((folder / "inside").glob("*-layer-stem-0-2-*.png"))) == text.count('alt="') - 5
    )  # four others, dialog
    assert "strongest of the 10 images of shapes/train" in capsys.readouterr().out


def check_pictures(text: str) -> str:
    assert "http" not in text.replace("http-equiv", "")
    assert not re.findall(r'src="(?!data:)', text)
    return text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("tinny",), "tinny: no checkpoint, and no backbone; did you mean 'tiny'?"),
        (("tiny", "--layer", "stem.9"), "--layer stem.9: no layer of tiny; did you mean"),
        (("tiny", "--layer", "stem.0.2", "--unit", "24"), "--unit 24: stem.0.2 of tiny has 24 units, 0 to 23"),
        (("tiny", "--unit", "2"), "--unit 2: of which layer? name it with --layer"),
        (("tiny", "--split", "val"), "--split val: goes with --data"),
        (("tiny", "--class", "cat"), "--class cat: goes with a classifier; of a detector, give --detection"),
        (("voc", "--weights", "a.pth"), "--weights a.pth: goes with a backbone, and voc is none"),
    ],
)
def test_what_cannot_be_is_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert run(arguments[0], "image.png", *arguments[1:]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert not (folder / "inside").exists()
