"""The loop: what it learns, where it stops, what it leaves behind."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.checkpoints import checkpoint
from detkit.engine.length import due
from detkit.engine.meter import LOG_EVERY, Meter
from detkit.engine.step import micro_batches, total
from detkit.engine.train import step_seed
from detkit.inference.evaluate import Evaluation, evaluate
from detkit.inference.fast import Fast
from detkit.structures import Images, Targets
from tests.toys.fixtures import Train
from tests.toys.toy import CLASSES, Toy


def test_it_learns_and_the_folder_is_complete(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} >= {
        *("config.yaml", "env.txt", "log.jsonl", "last.pt", "best.pt", "metrics.json", "plots", "samples")
    }
    assert {path.name for path in (trained / "plots").iterdir()} == {"loss.png", "pr.png"}
    assert len(list((trained / "samples").glob("*.jpg"))) == 9
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["mAP"] > 0.2
    assert set(metrics["AP"]) == set(CLASSES)
    assert metrics | {"metric": "voc07", "images": 9, "iou": 0.5, "split": "test"} == metrics
    assert metrics["seconds"] > 0
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss" in line] == [20, 24]
    assert [line["iteration"] for line in lines if "mAP" in line] == [8, 16, 24]
    assert lines[-2]["loss"] == pytest.approx(lines[-2]["classification"] + lines[-2]["box"])
    assert "torch: " in (trained / "env.txt").read_text()


NAN = float("nan")


def pretend_aps(monkeypatch: pytest.MonkeyPatch, *aps: float) -> None:
    """Let the evaluations on val find these."""
    coming = iter(aps)

    def pretend(*arguments: Any) -> Evaluation:
        evaluation = evaluate(*arguments)
        ap = torch.full_like(evaluation.result.ap, next(coming))
        return replace(evaluation, result=replace(evaluation.result, ap=ap))

    monkeypatch.setattr("detkit.engine.run.evaluate", pretend)


@pytest.mark.parametrize(
    ("aps", "best_at", "praised"),
    [((0.3, 0.9, 0.5), 16, [8, 16]), ((NAN, 0.0, 0.0), 16, [16]), ((NAN, NAN, NAN), 24, [])],
)
def test_the_best_on_val_is_kept(
    aps: tuple[float, ...],
    best_at: int,
    praised: list[int],
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pretend_aps(monkeypatch, *aps)
    folder = tmp_path / "run"
    assert train("--out", folder) == 0
    best = checkpoint.load(folder / "best.pt")
    assert best["iteration"] == best_at
    said = capsys.readouterr().out.splitlines()
    assert [line.split("/")[0] for line in said if line.endswith("the best so far")] == [str(at) for at in praised]
    assert best["metrics"]["split"] == "val"
    assert checkpoint.load(folder / "last.pt")["iteration"] == 24
    # the test split is seen by the best alone
    assert json.loads((folder / "metrics.json").read_text())["checkpoint"] == str(folder / "best.pt")


def test_what_training_says_is_what_evaluate_says(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On val and test a run's detector has the layers that a checkpoint detects with, and only then."""
    seen: list[Any] = []

    def watched(detector: Any, *arguments: Any) -> Evaluation:
        seen.append(detector)
        assert isinstance(detector.fast, Fast)
        return evaluate(detector, *arguments)

    for module in ("run", "finish"):
        monkeypatch.setattr(f"detkit.engine.{module}.evaluate", watched)
    assert train("--out", tmp_path / "run") == 0
    assert len(seen) == 4, "three of val, and the test"
    assert all(detector.fast is None for detector in seen)


def test_the_best_by_cocos_metric(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train("evaluate.metric=coco", "--out", folder) == 0
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    aps = {line["iteration"]: line["mAP"] for line in lines if "mAP" in line}
    assert checkpoint.load(folder / "best.pt")["iteration"] == max(aps, key=aps.__getitem__)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["metric"] == "coco"
    assert 0 < metrics["mAP"] < metrics["AP50"]


def test_a_resumed_run_knows_what_was_best(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_aps(monkeypatch, 0.9, 0.3, 0.5)
    Toy.signal_at = (10, signal.SIGTERM)
    folder = tmp_path / "run"
    assert train("--out", folder) == 143
    assert train("--resume", folder) == 0
    assert checkpoint.load(folder / "best.pt")["iteration"] == 8


def test_without_val_the_last_is_the_best(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train("data.val=[]", "data.test=[]", "--out", folder) == 0
    best, last = checkpoint.load(folder / "best.pt"), checkpoint.load(folder / "last.pt")
    assert best["iteration"] == 24
    assert all(torch.equal(best["model"][name], last["model"][name]) for name in last["model"])
    assert best["metrics"] == {}
    assert not (folder / "metrics.json").exists()


def test_default_folders_are_numbered(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert train("train.iterations=1", "data.val=[]", "data.test=[]") == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"toy-1", "toy-2"}


@pytest.mark.parametrize("amp", ["none", "fp16"])
def test_nonfinite_loss_names_the_images(amp: str, train: Train, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "run"
    Toy.nan_at = 7
    assert train("train.save_every=5", f"train.amp={amp}", "train.ema=0.5", "--out", folder) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    saved = torch.load(folder / "nonfinite.pt", weights_only=True)
    readable = json.loads((folder / "nonfinite.json").read_text())
    assert "step 7: the loss is not finite" in said
    assert saved["iteration"] == readable["iteration"] == 7
    assert readable["losses"]["box"] == "nan"
    assert saved["pixels"].shape == (4, 3, 32, 32)
    assert ", ".join(saved["ids"]) in said
    assert readable["boxes"] == saved["boxes"].tolist()
    assert not (folder / "best.pt").exists()
    # what is left is from before, and goes on
    assert checkpoint.load(folder / "last.pt")["iteration"] == 5
    Toy.nan_at = None
    assert train("--resume", folder) == 0


def test_meter_reads_a_device_seldom_and_finds_the_step() -> None:
    meter = Meter(torch.device("meta"))
    assert not meter.instant
    assert Meter(torch.device("cpu")).instant
    for iteration in range(LOG_EVERY):
        value = torch.tensor(float("inf") if iteration in (13, 15) else iteration)
        meter.add(iteration, [{"a": torch.tensor(1.0), "b": value}, {"a": torch.tensor(2.0), "b": value}])
    bad = meter.read()
    assert bad == (13, {"a": 1.5, "b": float("inf")})
    assert meter.read() is None
    losses, times = meter.summary()
    assert losses["a"] == 1.5
    assert set(times) == {"images_per_second", "data_share"}
    assert meter.steps == []


def test_micro_batches_are_the_batch_in_order() -> None:
    boxes = torch.rand(6, 2, 4)
    sizes = torch.arange(12).reshape(6, 2)
    images = Images(torch.randint(0, 255, (6, 3, 4, 4), dtype=torch.uint8), sizes, sizes, tuple("abcdef"))
    targets = Targets(boxes, torch.zeros(6, 2, dtype=torch.int64), torch.zeros(6, 2, dtype=torch.bool))
    parts = list(micro_batches(images, targets, 3))
    assert [part[0].ids for part in parts] == [("a", "b"), ("c", "d"), ("e", "f")]
    assert torch.equal(torch.cat([part[0].pixels for part in parts]), images.pixels)
    assert torch.equal(torch.cat([part[1].boxes for part in parts]), boxes)


def test_equal_micro_batches_make_the_step_of_one(train: Train, tmp_path: Path) -> None:
    same = ("data.train=[one]", "data.augment=[]", "data.val=[]", "data.test=[]", "train.lr=0.01")
    weights = []
    for count in (1, 2, 4):
        folder = tmp_path / str(count)
        assert train(*same, f"train.accumulate={count}", "--out", folder) == 0
        weights.append(checkpoint.load(folder / "last.pt")["model"]["out.weight"])
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights[2], weights[0], rtol=1e-5, atol=1e-6)


def test_when_things_are_due() -> None:
    assert [done for done in range(1, 11) if due(done, 4, 10)] == [4, 8, 10]
    assert [done for done in range(1, 11) if due(done, 0, 10)] == [10]
    assert total({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}) == 3
    seeds = {step_seed(seed, at, rank) for seed in range(3) for at in range(100) for rank in range(4)}
    assert len(seeds) == 1200


def test_evaluate_leaves_the_mode_and_can_be_repeated(trained: Path) -> None:
    from detkit.data.opening import open_dataset

    detector, config = checkpoint.load_detector(trained / "best.pt")
    val = open_dataset(config.data, "val", detector.classes)
    detector.train()
    results = [evaluate(detector, val, config) for _ in range(2)]
    assert detector.training
    assert results[0].result.mAP == results[1].result.mAP == checkpoint.load(trained / "best.pt")["metrics"]["mAP"]
    assert results[0].detections.ids == tuple(val.ids)


def test_compile_trains_the_same_network(train: Train, tmp_path: Path, monkeypatch) -> None:
    seen: list[nn.Module | Tensor] = []
    monkeypatch.setattr(torch, "compile", lambda network: seen.append(network) or network)
    assert (
        train("train.compile=true", "train.iterations=2", "data.val=[]", "data.test=[]", "--out", tmp_path / "x") == 0
    )
    assert len(seen) == 1
