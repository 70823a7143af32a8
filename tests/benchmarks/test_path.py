"""The benchmark of the whole path: what it times is the command, on all images of the folder."""

from pathlib import Path

import pytest

from detkit.cli import main, path_benchmark
from detkit.files import write_image
from detkit.runtime.race import Setting
from tests import zoo
from tests.builders import sample_image, save_checkpoint


def test_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(save_checkpoint(tmp_path / "best.pt", zoo.trained("ssd")))
    for number in range(9):  # more than a batch
        write_image(tmp_path / f"images/{number}.jpg", sample_image(40, 50, number))
    (benchmark,) = path_benchmark.path_benchmarks(checkpoint, str(tmp_path / "images"))
    assert benchmark.name == f"{checkpoint}, 9 images"
    seen: list[list[str]] = []
    monkeypatch.setattr(path_benchmark, "main", lambda arguments: seen.append(arguments) or main(arguments))
    for runner in benchmark.runners:
        runner.setup(Setting("cpu", 1, 1))()
    assert [("--no-images" in arguments, "--format" in arguments) for arguments in seen] == [
        (True, False),
        (False, True),
    ]
    assert capsys.readouterr().out == ""
    assert main(["benchmark", "path"]) == 2
    assert "give --images DIR" in capsys.readouterr().err
