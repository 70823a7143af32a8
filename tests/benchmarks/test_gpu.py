"""`benchmark gpu`, tried on the CPU."""

import json
from pathlib import Path

import pytest

from detkit.benchmarks import gpu, ops
from detkit.benchmarks.detectors import Network
from detkit.cli import main
from detkit.config import DetectConfig
from detkit.experiment import load_config
from detkit.models.ssd import SSDConfig
from tests import zoo


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Network(lambda: (zoo.build("ssd"), DetectConfig()), gpu.nn.Module, (96, 96), 1, 1e-4, 0.0)
    objects = zoo.some_objects(zoo.build("ssd"))
    monkeypatch.setattr(Network, "targets", lambda *_: objects)
    for name in ("MOBILENET", "NVIDIA"):
        monkeypatch.setattr(gpu, name, small)
    monkeypatch.setattr(gpu, "NETWORKS", {"ssd": small})
    monkeypatch.setattr(gpu, "AMP", "none")
    monkeypatch.setattr(ops, "BOXES", 200)
    monkeypatch.setattr(gpu.os, "cpu_count", lambda: 1)
    sections = {name: gpu.SECTIONS[name] for name in gpu.SECTIONS if name != "forms"}  # which compiles
    monkeypatch.setattr(gpu.measure, "__defaults__", ((*sections,),))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    assert main(["benchmark", "gpu", "--device", "cpu", "--tiny", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert {row["section"] for row in rows} == {"ops", "published", "train", "detect", "evaluate", "load"}
    assert not [row for row in rows if "error" in row]
    assert all(row["seconds"] > 0 for row in rows)
    assert {row.get("published_images_per_second") for row in rows if row["section"] == "published"} == {143, None}
    assert "of 220 s" in text
    for words, arguments in (
        ("--tiny: goes with `benchmark gpu` alone", ["ops", "--tiny"]),
        ("gpu beside others: goes with", ["gpu", "ops"]),
    ):
        assert main(["benchmark", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_one_failure_and_no_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> gpu.Job:
        raise RuntimeError("no\nmemory")

    race = gpu.race_of("both", 2, None, detkit=lambda _: lambda: None, broken=broken)
    monkeypatch.setitem(gpu.SECTIONS, "ops", lambda _: [race])
    first, second = gpu.measure("cpu", gpu.TINY, 100, lambda _: None, ["ops"])
    assert first["images_per_second"] > 0
    assert second["error"].startswith("RuntimeError: no")
    (row,) = gpu.measure("cpu", gpu.TINY, -1, lambda _: None, ["ops"])
    assert row["error"] == "no time was left"


def test_the_config_is_the_files() -> None:
    config = load_config(Path(__file__).parents[2] / "configs/coco/ssd300_resnet50_nvidia.yaml").model
    ours = gpu.nvidia_config()
    assert isinstance(config, SSDConfig)
    for key in ("features", "extras", "min_sizes", "max_sizes", "size"):
        assert getattr(config, key) == getattr(ours, key)
    assert config.backbone.name == ours.backbone.name
