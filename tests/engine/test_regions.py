"""What a stage is told of the objects and proposals of the training images."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.config import Config, DataConfig, TrainConfig
from detkit.data.opening import open_dataset
from detkit.data.proposal_store import make_manifest, write_store
from detkit.engine.stage_context import StageContext
from tests.data.roots import make_root, xml
from tests.toys.toy import ToyConfig

OBJECTS = {
    "a": [("cat", (1, 1, 20, 30), 1, 0), ("dog", (11, 6, 50, 40), 0, 0)],
    "b": [],
    "c": [("dog", (31, 21, 60, 40), 1, 0)],
}
PROPOSALS = {"a": [(0, 0, 20, 30), (5, 5, 9, 9)], "b": [(1, 2, 3, 4)], "c": []}


@pytest.mark.parametrize("difficult", [True, False])
def test_objects_and_proposals_come_in_batches(difficult: bool, tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", {name: xml(own) for name, own in OBJECTS.items()}, {"train": [*OBJECTS]})
    store = tmp_path / "store.npz"
    boxes = [np.array(own, np.float32).reshape(-1, 4) for own in PROPOSALS.values()]
    write_store(store, [*PROPOSALS], boxes, manifest=make_manifest("m", {}, [*PROPOSALS]))
    data = DataConfig(root=str(root), train=["train"], difficult=difficult, proposals=[str(store)])
    config = Config(model=ToyConfig(), data=data, train=TrainConfig(iterations=1))
    run = StageContext(config, tmp_path, torch.device("cpu"), open_dataset(data, "train"), None, None)

    (targets, proposals), (last_targets, last_proposals) = run.regions(images=2)

    assert targets.boxes.tolist() == [[[0, 0, 20, 30], [10, 5, 50, 40]], [[0] * 4] * 2]
    assert targets.labels.tolist() == [[0, 1], [-1, -1]]
    assert targets.ignore.tolist() == [[not difficult, False], [False, False]]
    assert proposals.boxes.tolist() == [[[0, 0, 20, 30], [5, 5, 9, 9]], [[1, 2, 3, 4], [0] * 4]]
    assert proposals.valid.tolist() == [[True, True], [True, False]]
    assert last_targets.boxes.tolist() == [[[30, 20, 60, 40]]]
    assert last_targets.ignore.tolist() == [[not difficult]]
    assert not last_proposals.valid.any()
