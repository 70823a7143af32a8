"""A proposal keeps its score when others, and objects, are lost on the way."""

import numpy as np

from detkit.config import DataConfig, TrainConfig
from detkit.data.loader import train_loader
from detkit.data.proposal_store import make_manifest, write_store
from detkit.data.voc import VOCDataset
from detkit.structures import InputSpec
from tests.data.roots import make_root, xml

# the crop to 32 x 24 of an image of 60 x 40 keeps x 14..46 and y 8..32; sizes stay as they are
CROP = {"CenterCrop": {"height": 24, "width": 32}}
OUTSIDE, INSIDE = (0, 0), (16, 10)


def test_scores_stay_with_their_proposals(tmp_path):
    objects = [("cat", (1, 1, 8, 6)), ("cat", (21, 11, 40, 30)), ("cat", (51, 35, 60, 40))]  # the second is kept
    root = make_root(tmp_path / "root", {"a": xml(objects), "b": xml([])}, {"train": ["a", "b"]})
    places = {"a": (OUTSIDE, INSIDE, OUTSIDE, INSIDE, INSIDE), "b": (INSIDE, OUTSIDE, OUTSIDE, INSIDE)}
    # the width of a box tells which one it is, and is its score
    widths = {"a": (9, 8, 7, 6, 5), "b": (8, 7, 4, 2)}
    boxes = [[(x, y, x + width, y + 3) for (x, y), width in zip(places[name], widths[name])] for name in places]
    scores = [np.array(own, np.float32) for own in widths.values()]
    store = tmp_path / "store.npz"
    write_store(store, [*places], [np.array(own) for own in boxes], scores, manifest=make_manifest("m", {}, [*places]))

    data = DataConfig(root=str(root), augment=[CROP], proposals=[str(store)])
    recipe = TrainConfig(iterations=1, batch=2, workers=0)
    dataset = VOCDataset([(root, "train")])
    ((images, targets),) = train_loader(dataset, InputSpec((24, 32)), data, recipe, start=0, stop=1)

    proposals = images.proposals
    assert proposals is not None
    assert proposals.scores is not None
    found = {}
    for name, own, valid, values in zip(images.ids, proposals.boxes, proposals.valid, proposals.scores):
        kept = own[valid]
        assert (kept[:, 2] - kept[:, 0]).round().tolist() == values[valid].tolist()
        found[name] = values[valid].tolist()
    assert found == {"a": [8, 6, 5], "b": [8, 2]}
    assert targets.valid.sum() == 1
