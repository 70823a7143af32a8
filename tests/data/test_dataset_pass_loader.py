"""The loader of stages that are no gradient descent: every row that is asked for, unaugmented."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch

from detkit.config import DataConfig
from detkit.data import loader
from detkit.data.proposal_store import make_manifest, write_store
from detkit.data.voc import VOCDataset
from detkit.structures import InputSpec

SPEC = InputSpec((24, 32))
ROWS = [6, 3, 0, 8, 1]


@pytest.fixture
def dataset(small_root):
    return VOCDataset([(small_root, "trainval")])


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_every_row_comes_once_in_the_order_asked_for(dataset, batch):
    batches = loader.dataset_pass_loader(dataset, SPEC, DataConfig(root="x"), ROWS, batch=batch)
    ids = [dataset.ids[row] for row in ROWS]
    expected = [tuple(ids[first : first + batch]) for first in range(0, len(ids), batch)]
    assert [images.ids for images, _ in batches] == expected
    assert len(batches) == len(expected)


def test_images_and_objects_are_those_of_testing(dataset):
    """Whatever training's augmentation is."""
    data = DataConfig(root="x", augment=["PhotometricDistort", {"HorizontalFlip": {"p": 1.0}}])
    ((images, targets),) = loader.dataset_pass_loader(dataset, SPEC, data, range(9), batch=9)
    ((tested, objects),) = loader.test_loader(dataset, SPEC, batch=9, workers=0)
    assert torch.equal(images.pixels, tested.pixels)
    assert torch.equal(targets.boxes, objects.boxes)
    assert torch.equal(targets.labels, objects.labels)


@pytest.mark.parametrize("difficult", [True, False])
def test_difficult_objects_are_ignored_unless_the_config_says_so(dataset, difficult):
    data = DataConfig(root="x", difficult=difficult)
    flags = {}
    for images, targets in loader.dataset_pass_loader(dataset, SPEC, data, ROWS, batch=2):
        flags |= {name: ignore.any().item() for name, ignore in zip(images.ids, targets.ignore)}
    assert flags == {dataset.ids[row]: row == 3 and not difficult for row in ROWS}


def test_proposals_are_those_of_each_row(dataset, tmp_path):
    store = tmp_path / "store.npz"
    boxes = [np.array([(0, 0, 6 * (row + 1), 40)], np.float32) for row in range(9)]
    write_store(store, dataset.ids, boxes, manifest=make_manifest("m", {}, dataset.ids))
    data = DataConfig(root="x", proposals=[str(store)])
    batches = loader.dataset_pass_loader(dataset, SPEC, data, ROWS, batch=2)
    seen = [images.proposals.boxes for images, _ in batches if images.proposals is not None]
    widths = torch.cat(seen)[:, 0, 2]  # 60 pixels of the image are 32 of the input
    torch.testing.assert_close(widths, torch.tensor([3.2 * (row + 1) for row in ROWS]))


def test_workers_that_leave_after_a_sigterm_do_not_disturb_a_long_batch(dataset, monkeypatch):
    """A scheduler sends it to all processes, and the main one may be busy for longer than they wait."""
    monkeypatch.setattr(loader, "GRACE", 1)
    batches = iter(loader.dataset_pass_loader(dataset, SPEC, DataConfig(root="x"), ROWS, batch=1, workers=2))
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGTERM)
    while any(worker.is_alive() for worker in workers):
        time.sleep(0.05)  # where torch would raise of a worker that a signal has killed
    assert [worker.exitcode for worker in workers] == [0, 0]


@pytest.mark.parametrize(("world", "batch"), [(2, 1), (2, 2), (3, 2), (4, 2)])
def test_processes_take_turns(dataset, world, batch):
    shares = [
        [
            images.ids
            for images, _ in loader.dataset_pass_loader(
                dataset, SPEC, DataConfig(root="x"), ROWS, batch=batch, rank=rank, world=world
            )
        ]
        for rank in range(world)
    ]
    whole = [
        images.ids for images, _ in loader.dataset_pass_loader(dataset, SPEC, DataConfig(root="x"), ROWS, batch=batch)
    ]
    assert [shares[number % world][number // world] for number in range(len(whole))] == whole
    assert sum(map(len, shares)) == len(whole)
