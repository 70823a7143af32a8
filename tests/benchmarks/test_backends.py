"""The benchmark of backends: detkit on each that is installed, and the programs alone."""

from pathlib import Path

import pytest

from detkit.benchmarks import backends
from detkit.cli import main
from detkit.export.onnx import export_onnx
from detkit.files import write_image
from detkit.runtime.race import Setting
from detkit.structures import Detections
from tests import zoo
from tests.backends import INSTALLED
from tests.builders import sample_image, save_checkpoint

pytest.importorskip("onnxscript")


def test_the_rows(tmp_path: Path) -> None:
    checkpoint = str(save_checkpoint(tmp_path / "best.pt", zoo.trained("ssd")))
    for number in range(2):  # fewer than the eight that a row takes
        write_image(tmp_path / f"images/{number}.jpg", sample_image(40, 50, number))
    one, eight = backends.backend_benchmarks(checkpoint, str(tmp_path / "images"))
    assert [one.name, eight.name] == [f"{checkpoint}, 1 image", f"{checkpoint}, 8 images"]
    alone = [f"{name} alone" for name in INSTALLED]
    own = [f"detkit on {name}, scores >= {score}" for name in (*INSTALLED, "torch") for score in ("0.5", "0.01")]
    assert [runner.name for runner in eight.runners] == alone + own
    found = {runner.name: runner.setup(Setting("cpu", 1, 1))() for runner in eight.runners}
    for name in own:
        detections = found[name]
        assert isinstance(detections, Detections)
        assert len(detections.boxes) == 8
        lowest = detections.scores[detections.valid].min()
        assert (lowest >= 0.5) == name.endswith("0.5")
    assert all(found[name] is not None for name in alone)

    export_onnx(Path(checkpoint), tmp_path / "net.onnx")
    one, _ = backends.backend_benchmarks(str(tmp_path / "net.onnx"), str(tmp_path / "images"))
    assert [runner.name for runner in one.runners] == alone + own[:-2]  # all but torch
    assert all(runner.setup(Setting("cpu", 1, 1))() is not None for runner in one.runners)


def test_a_detector_of_two_files_has_no_rows_alone(tmp_path: Path) -> None:
    checkpoint = str(save_checkpoint(tmp_path / "best.pt", zoo.trained("faster_rcnn")))
    write_image(tmp_path / "images/0.jpg", sample_image(40, 50))
    one, _ = backends.backend_benchmarks(checkpoint, str(tmp_path / "images"))
    assert not [runner.name for runner in one.runners if "alone" in runner.name]


def test_wrong_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "backends"]) == 2
    assert "give --images DIR" in capsys.readouterr().err
