"""Weights that are not finite are refused by whatever loads a detector, before anything is written."""

from pathlib import Path

import pytest
import torch

from detkit.cli import run_command


@pytest.mark.parametrize(
    "command",
    [
        "detect {weights} images",
        "detect {weights} images/0.jpg --explain --out out",
        "evaluate {weights} --out out",
        "export {weights} --onnx out.onnx",
    ],
)
def test_nan_among_the_weights_is_one_line(
    command: str, weights: str, image_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(weights, weights_only=True)
    name = next(name for name, tensor in content["model"].items() if tensor.is_floating_point())
    content["model"][name].view(-1)[-1] = torch.nan
    torch.save(content, "bad.pt")
    capsys.readouterr()
    assert run_command(*(words := command.format(weights="bad.pt").split())[:1], words[1:]) != 0
    said = capsys.readouterr().err.splitlines()
    assert said == [f"error: bad.pt: {name} holds values that are not finite; take an earlier checkpoint"]
    assert not list(Path().glob("out*"))
