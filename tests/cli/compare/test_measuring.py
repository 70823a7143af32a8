"""detkit compare: what is measured of each detector, and of runs and proposals that are there or not."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest

from detkit.checkpoints import checkpoint
from detkit.comparison import detecting, job, measure, training
from detkit.comparison.entries import find_entries
from detkit.comparison.measure import training_log
from detkit.data.opening import open_dataset
from detkit.data.proposal_store import open_store
from detkit.experiment import load_config
from detkit.models import build_detector
from detkit.proposals import make, methods
from detkit.runtime.race import Setting
from tests.builders import few_regions
from tests.cli.compare.builders import compare, content, flops
from tests.toys.toy import CLASSES

SSD = """
model: {{name: ssd, backbone: {{name: tiny}}, size: 96, l2norm: [], extras: [[32, 64, 3, 2, 1]], batch_norm: false,
  min_sizes: [12.0, 24.0, 48.0, 72.0], max_sizes: [24.0, 48.0, 72.0, 90.0],
  aspect_ratios: [[2.0], [2.0], [2.0], [2.0]]}}
data: {{root: {root}, train: [train], val: [val], test: [test]}}
train: {{iterations: 2, batch: 4, workers: 0, device: cpu}}
"""


def test_runs_are_taken_as_they_are(compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "COMMAND", ("false",))
    runs = tmp_path / "runs"
    for name in ("slim", "wide"):
        shutil.copytree(compared / name, runs / name)
    (runs / "wide" / "metrics.json").unlink()
    files = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert compare(runs, "--out", tmp_path / "out") == 0
    assert files == {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    slim, wide = content(tmp_path / "out")["detectors"]
    assert (slim["finished"], wide["finished"]) == (True, False)
    assert "training not ended" in (tmp_path / "out" / "report.html").read_text()
    assert slim["mAP"] == content(compared)["detectors"][0]["mAP"]
    images, seconds = training_log(compared / "slim", 4)
    assert (slim["training_images_per_second"], slim["training_seconds"]) == (images, seconds)
    assert slim["training_seconds_of"] == "steps and evaluations in log.jsonl"


def test_training_log(tmp_path: Path):
    lines = [
        {"iteration": 20, "loss": 1.0, "images_per_second": 10.0},  # 80 images in 8 s
        {"iteration": 24, "loss": 1.0, "images_per_second": 4.0},  # 16 in 4 s
        {"iteration": 24, "mAP": 0.5, "seconds": 3.0},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert training_log(tmp_path, 4) == (96 / 12, 15.0)
    assert training_log(tmp_path / "nowhere", 4) == (None, None)


def test_missing_proposals_are_made_and_timed(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = []
    monkeypatch.setattr(methods, "find_method", lambda *_: few_regions)
    monkeypatch.setattr(job, "proposal_seconds", lambda entries, *_: [0.5] * len(entries))

    def in_this_process(dataset, images, method, parameters, workers):
        made.append((dataset.name, method, parameters["mode"]))
        for i in images:
            yield i, few_regions(dataset.image(i)), None

    monkeypatch.setattr(make, "_run", in_this_process)
    stores = [str(tmp_path / f"toys-{split}-selective_search-single.npz") for split in ("train", "val", "test")]
    config = tmp_path / "fast.yaml"
    config.write_text(
        "model: {name: fast_rcnn, backbone: {name: tiny}, size: [48, 64], freeze_stages: 0, batch_size_per_image: 4}\n"
        f"data: {{root: {toys}, train: [train], val: [val], test: [test], proposals: [{', '.join(stores)}]}}\n"
        "train: {iterations: 2, batch: 2, workers: 0, device: cpu}\n"
    )
    assert compare(config, "--out", tmp_path / "out") == 0
    assert made == [(f"toys/{split}", "selective_search", "single") for split in ("train", "val", "test")]
    assert len(open_store(stores[0])) == 24
    found = content(tmp_path / "out")
    assert set(found["protocol"]["stores made"]) == set(stores)
    (one,) = found["detectors"]
    assert (one["takes_proposals"], one["proposals_seconds_per_image"]) == (True, 0.5)
    assert one["images_per_second_with_proposals"]["16"] == pytest.approx(1 / 1.5)
    entries = find_entries([str(config)], [], tmp_path / "out")
    dataset = open_dataset(entries[0].config.data, "test")
    assert detecting.method_of(entries[0].config, dataset) == ("selective_search", {"mode": "single", "seed": 0})
    assert compare(config, "--out", tmp_path / "out") == 0
    assert len(made) == 3


def test_the_papers_order(tmp_path: Path):
    papers = [
        "rcnn",
        "sppnet",
        "fast_rcnn",
        "faster_rcnn",
        "yolov1",
        "ssd",
        "rfcn",
        "yolov2",
        "mask_rcnn",
        "retinanet",
        "yolov3",
    ]
    for name in papers:
        shutil.copy(Path(__file__).parents[3] / "configs" / "shapes" / f"{name}.yaml", tmp_path)
    assert [entry.name for entry in find_entries([str(tmp_path)], [], tmp_path / "out")] == papers


def test_measured_in_processes_of_their_own(toys: Path, tmp_path: Path):
    """Without any stand-in: memory, operations and speed of a detector that other processes know."""
    path = tmp_path / "ssd.yaml"
    path.write_text(SSD.format(root=toys))
    config = load_config(path)
    detector = build_detector(config.model, CLASSES)
    (tmp_path / "out" / "ssd").mkdir(parents=True)
    checkpoint.save(tmp_path / "out" / "ssd" / "best.pt", detector, config)
    (entry,) = find_entries([str(path)], [], tmp_path / "out")
    cost = detecting.measure_cost(config, entry.best, "cpu")
    assert cost.parameters == sum(part.numel() for part in detector.parameters())
    assert cost.flops == flops(detector, 96)
    if sys.platform == "linux":
        assert cost.memory is not None
        # more than the weights, less than a copy of torch
        assert 4 * cost.parameters < cost.memory < 300e6
    rounds = []
    (rates,) = measure.speeds([entry], Setting("cpu", 1, 2), lambda done, total: rounds.append((done, total)))
    assert set(rates) == {1, 16}
    assert all(0 < rate < math.inf for rate in rates.values())
    assert rounds == [(1, 4), (2, 4), (3, 4), (4, 4)]
