"""Two processes train as one does, at the same total batch."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from detkit.checkpoints import checkpoint
from detkit.config import TrainConfig
from detkit.engine.session import check_batch
from detkit.errors import UserError
from detkit.inference.evaluate import join
from detkit.models import SGD
from detkit.structures import DetectionSet
from tests.toys.fixtures import Train

PATIENCE = 300.0  # seconds


def torchrun(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Start `detkit train` with the toy detector in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.toys.train_toy", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ranks(launcher: int) -> dict[int, int]:
    """Return the processes of a launcher, by their ranks."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (path / "environ").read_bytes().split(b"\0")
            if parent == launcher:
                found |= {int(text[5:]): int(path.name) for text in environment if text.startswith(b"RANK=")}
    return found


def alive(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_two_processes_equal_one(config: Path, train: Train, tmp_path: Path) -> None:
    recipe = ("train.ema=0.9", "train.clip=5", "train.bias_lr=2", "train.iterations=40", "evaluate.batch=2")
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(*recipe, "--out", one) == 0
    ran = torchrun(config, *recipe, "--out", two)
    out, err = ran.communicate()
    assert ran.returncode == 0, err
    assert out.count("40/40  val mAP") == 1, out

    for name in ("best.pt", "last.pt"):
        expected, found = checkpoint.load(one / name), checkpoint.load(two / name)
        assert expected["iteration"] == found["iteration"]
        for key, weight in expected["model"].items():
            torch.testing.assert_close(found["model"][key], weight, rtol=1e-5, atol=1e-6)
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, two)]
    assert len(logs[0]) == len(logs[1]) == 2 + 5
    for expected, found in zip(*logs):
        assert expected.keys() == found.keys()
        for key in ("iteration", "loss", "classification", "box", "lr", "mAP"):
            assert abs(expected.get(key, 0) - found.get(key, 0)) < 1e-5, key
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, two)]
    assert metrics[0]["images"] == metrics[1]["images"] == 9
    assert abs(metrics[0]["mAP"] - metrics[1]["mAP"]) < 1e-5
    assert "processes: 2" in (two / "env.txt").read_text()


@pytest.mark.parametrize("who", ["a process", "the launcher"])
def test_a_kill_leaves_nothing_running_and_a_run_to_go_on_with(
    who: str, config: Path, train: Train, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    launcher = torchrun(config, "--out", folder, TOY_SLOWLY="0.5")
    until(lambda: (folder / "last.pt").exists())
    processes = ranks(launcher.pid)
    assert sorted(processes) == [0, 1]
    os.kill(launcher.pid if who == "the launcher" else processes[1], signal.SIGKILL)
    _, said = launcher.communicate()  # ends once nobody can write any more, which is just before they are gone
    until(lambda: not any(map(alive, processes.values())))
    expected = "SIGTERM: " if who == "the launcher" else "error: another process of this run has ended"
    assert expected in said
    assert "RuntimeError" not in said
    assert train("--resume", folder) == 0
    assert checkpoint.load(folder / "last.pt")["iteration"] == 24
    assert "changed: processes 2 -> 1\n" in (folder / "env.txt").read_text()


def test_a_batch_that_cannot_be_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detkit.runtime.distributed.world_size", lambda: 2)
    plain, longer = [SGD()], [SGD(), SGD("rpn", iterations_factor=2)]
    for batch, stages in ((6, plain), (12, longer)):
        check_batch(TrainConfig(iterations=1, batch=batch, accumulate=3), stages)
    with pytest.raises(UserError, match=r"train.batch: 9 is not a multiple of 6 \(2 processes x train.accumulate 3\)"):
        check_batch(TrainConfig(iterations=1, batch=9, accumulate=3), plain)
    with pytest.raises(UserError, match=r"train.batch: 6 is not a multiple of 12 \(2 .* 3 x 2 steps of a stage\)"):
        check_batch(TrainConfig(iterations=1, batch=6, accumulate=3), longer)


def shares(ids: tuple[str, ...], parts: list[list[int]]) -> list[DetectionSet]:
    """Cut a set of two detections an image, both with one score, by the positions of each part."""
    sets = []
    for part in parts:
        at = torch.tensor(part, dtype=torch.int64).repeat_interleave(2)
        order = torch.arange(len(at))
        boxes = torch.stack([at, order % 2, at + 5, order % 2 + 5], 1).float()
        image = torch.arange(len(part)).repeat_interleave(2)
        names = tuple(ids[index] for index in part)
        sets.append(DetectionSet(boxes, torch.full((len(at),), 0.5), at % 3, image, names, ("a", "b", "c")))
    return sets


@pytest.mark.parametrize(
    "parts", [[[0, 1, 2], [3, 4]], [[0, 2, 4], [1, 3]], [[], [4, 3, 2, 1, 0]], [[3], [], [0, 1, 2, 4]]]
)
def test_shares_join_in_the_order_of_one_process(parts: list[list[int]]) -> None:
    ids = ("e", "d", "c", "b", "a")
    (whole,) = shares(ids, [[0, 1, 2, 3, 4]])
    joined = join(shares(ids, parts), ids)
    assert joined.ids == ids
    for name in ("boxes", "scores", "labels", "image"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name
