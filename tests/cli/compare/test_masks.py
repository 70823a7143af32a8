"""detkit compare: the AP of masks, of detectors that find them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detkit.comparison import measure
from detkit.comparison.detecting import Cost
from detkit.comparison.entries import Entry
from detkit.comparison.page import _numbers
from detkit.comparison.rows import Compared, Training, screen_table
from detkit.data.dataset import DetectionDataset
from detkit.data.formats import open_root
from detkit.data.shapes import draw_shapes
from detkit.evaluation import coco_ap, score
from detkit.evaluation.errors import analyse_errors
from detkit.experiment import load_config
from detkit.inference.evaluate import Evaluation
from detkit.structures import DetectionSet


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DetectionDataset:
    root = tmp_path_factory.mktemp("masks") / "shapes"
    draw_shapes(root, {"test": 12})
    return open_root(root, ["test"])


def test_masks_have_an_ap_of_their_own(
    dataset: DetectionDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = dataset.truth(masks=True)
    assert truth.masks is not None
    boxes, labels, image = truth.boxes, truth.labels, truth.image
    found = DetectionSet(boxes, torch.linspace(0.1, 0.9, len(boxes)), labels, image, truth.ids, truth.classes)
    masks = [*truth.masks]
    for row in (labels == 0).nonzero().flatten().tolist():  # these have the mask of another object of their image
        others = [other for other in (image == image[row]).nonzero().flatten().tolist() if other != row]
        masks[row] = truth.masks[(others or [row])[0]]
    found = replace(found, masks=tuple(masks))
    expected = coco_ap(found, dataset.ranked_truth(masks=True), masks=True)
    assert 0.5 < expected.mAP < 1

    config = load_config("shapes/mask_rcnn")
    entry = Entry("mask_rcnn", config, tmp_path)
    entry.best.write_bytes(b"weights")
    evaluation = Evaluation(score(found, dataset.ranked_truth(), "voc07"), found, 1.0, expected)
    monkeypatch.setattr(measure, "_evaluate", lambda *_: evaluation)
    rows = []
    for _ in range(2):  # evaluated, and read again
        result, detections, own = measure.evaluate_entry(entry, dataset, tmp_path)
        monkeypatch.setattr(measure, "_evaluate", None)
        assert own is not None
        assert (result.mAP, own.mAP) == (evaluation.result.mAP, expected.mAP)
        errors = analyse_errors(detections, truth, "voc07")
        costs = Cost(1, 2, 3), Training(None, None, False)
        rows.append(Compared(entry, result, detections, errors, [], 0.5, errors, *costs, masks=own))
    assert rows[0].to_dict()["mask_AP50"] == expected.to_dict()["AP50"]
    without = replace(rows[1], masks=None)
    assert without.to_dict()["mask_AP"] is None
    assert f"{expected.mAP:.4f}" in _numbers([*rows, without])
    assert "mask AP" not in _numbers([without])
    assert "mask AP" in [str(text) for text in screen_table(rows, "").columns[0].cells]
