"""What the engine hands to a stage: the images that are left to do, the batches of its proposals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.config import DataConfig
from detkit.data.opening import open_dataset
from detkit.engine import run as run_module
from detkit.engine import stage_context
from detkit.engine.stage_context import StageContext
from detkit.experiment import load_config
from detkit.models import SGD, build_detector
from detkit.structures import Images, InputSpec, Targets


@pytest.fixture
def run(config: Path, tmp_path: Path) -> StageContext:
    settings = load_config(config, ["data.proposal_count=7", "evaluate.batch=2"])
    dataset = open_dataset(DataConfig(root=settings.data.root, train=["train"]), "train")
    return StageContext(settings, tmp_path, torch.device("cpu"), dataset, None, None)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 2, 5])
def test_a_pass_goes_on_after_what_is_done(
    run: StageContext, done: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves how many of all the images are done."""
    monkeypatch.setattr(stage_context, "SAVE_EVERY", -1.0)  # after each batch
    run.config.train.workers = workers
    loaders: list[Any] = []
    made = stage_context.dataset_pass_loader
    monkeypatch.setattr(stage_context, "dataset_pass_loader", lambda *a, **k: loaders.append(k) or made(*a, **k))
    detector, saved = build_detector(run.config.model, run.train.classes).train(), []
    indices = [5, 3, 0, 8, 1]
    seen = []

    def extract(images: Images, targets: Targets) -> tuple[Tensor]:
        assert not detector.training
        assert not torch.is_grad_enabled()
        for row, name in enumerate(images.ids):
            index = run.train.ids.index(name)
            assert (
                targets.labels[row][targets.valid[row]].tolist() == run.train.record(index).annotations.labels.tolist()
            )
        return (torch.tensor([run.train.ids.index(name) for name in images.ids]),)

    for (numbers,) in run.dataset_pass(detector, extract, indices, "work", done=done, save=saved.append):
        seen += numbers.tolist()
    assert seen == indices[done:]
    assert [keys["workers"] for keys in loaders] == [workers]
    assert saved == {0: [2, 4, 5], 2: [4, 5], 5: []}[done]


@pytest.mark.parametrize(("rank", "expected"), [(0, [5, 3, 1]), (1, [0, 8])])
def test_processes_share_a_pass(
    run: StageContext, rank: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each extracts of every other batch, and all take part in every exchange, with or without a batch."""
    sent: list[tuple[int, tuple[Tensor, ...]]] = []
    monkeypatch.setattr(stage_context.distributed, "world_size", lambda: 2)
    monkeypatch.setattr(stage_context.distributed, "rank", lambda: rank)
    monkeypatch.setattr(stage_context.distributed, "gather", lambda value: sent.append(value) or [value])
    monkeypatch.setattr(stage_context.distributed, "all_reduce_max", lambda number: number)
    detector = build_detector(run.config.model, run.train.classes)

    def extract(images: Images, _: Targets) -> tuple[Tensor]:
        return (torch.tensor([run.train.ids.index(name) for name in images.ids]),)

    results = list(run.dataset_pass(detector, extract, [5, 3, 0, 8, 1], "work", save=lambda _: None))
    assert torch.cat([numbers for (numbers,) in results]).tolist() == expected
    assert [number for number, _ in sent] == [[2, 1], [2, 0]][rank]


@pytest.mark.parametrize("store", [None, "rpn.npz"])
def test_a_stage_trains_on_all_proposals_of_its_own_store(
    run: StageContext, store: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others train on those of the config, as many as it says."""
    calls = []
    monkeypatch.setattr(run_module, "train_loader", lambda *arguments, **keys: calls.append((arguments, keys)))
    run.config.data.proposals = ["other.npz"]
    run.batches(SGD(store=store), InputSpec((32, 32)), 3, 9, workers=1)
    (((dataset, spec, data, recipe), keys),) = calls
    assert (dataset, spec) == (run.train, InputSpec((32, 32)))
    expected = (["other.npz"], 7) if store is None else ([str(run.folder / store)], None)
    assert (data.proposals, data.proposal_count) == expected
    assert (recipe.workers, recipe.batch) == (1, run.config.train.batch)
    assert keys == {"start": 3, "stop": 9, "rank": 0, "world": 1, "masks": False}
    assert (run.config.data.proposals, run.config.train.workers) == (["other.npz"], 0), "the run's config is its own"
