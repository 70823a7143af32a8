"""detkit compare: what the table has of each detector, the AP of masks where there are any."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from detkit.comparison import measure
from detkit.comparison.detecting import Cost
from detkit.comparison.entries import Entry
from detkit.comparison.page import _numbers
from detkit.comparison.rows import Compared, Training, screen_tables
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


@pytest.fixture(scope="module")
def found(dataset: DetectionDataset) -> DetectionSet:
    """The objects, of which those of a class have the mask of another object of their image."""
    truth = dataset.truth(masks=True)
    assert truth.masks is not None
    masks = [*truth.masks]
    for row in (truth.labels == 0).nonzero().flatten().tolist():
        others = [other for other in (truth.image == truth.image[row]).nonzero().flatten().tolist() if other != row]
        masks[row] = truth.masks[(others or [row])[0]]
    scores = torch.linspace(0.1, 0.9, len(masks))
    return DetectionSet(truth.boxes, scores, truth.labels, truth.image, truth.ids, truth.classes, tuple(masks))


@pytest.fixture(scope="module")
def row(dataset: DetectionDataset, found: DetectionSet, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    entry = Entry("mask_rcnn", load_config("shapes/mask_rcnn"), tmp_path_factory.mktemp("run"))
    truth = dataset.ranked_truth(masks=True)
    result, masks = score(found, truth, "voc07"), coco_ap(found, truth, masks=True)
    errors = analyse_errors(found, truth, "voc07")
    return Compared(
        entry, result, found, errors, [], 0.5, errors, Cost(1, 2, 3), Training(None, None, False), masks=masks
    )


def test_masks_are_scored_and_scored_again(
    dataset: DetectionDataset, found: DetectionSet, row: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = row.masks
    assert expected is not None
    assert 0.5 < expected.mAP < 1 == row.result.mAP
    entry = replace(row.entry, folder=tmp_path)
    entry.best.write_bytes(b"weights")
    monkeypatch.setattr(measure, "_evaluate", lambda *_: Evaluation(row.result, found, 1.0, expected))
    for _ in range(2):  # evaluated, and read from its file
        result, _, masks = measure.evaluate_entry(entry, dataset, tmp_path)
        monkeypatch.setattr(measure, "_evaluate", None)
        assert masks is not None
        assert (result.mAP, masks.mAP) == (row.result.mAP, expected.mAP)


def test_masks_have_a_column_where_a_detector_finds_any(row: Compared) -> None:
    assert row.masks is not None
    without = replace(row, masks=None)
    assert (row.to_dict()["mask_AP"], row.to_dict()["mask_AP50"]) == (row.masks.mAP, row.masks.to_dict()["AP50"])
    assert without.to_dict()["mask_AP"] is None
    assert f"{row.masks.mAP:.4f}" in _numbers([without, row])
    assert "mask AP" not in _numbers([without])
    (table,) = screen_tables([without, row], "", 80)
    assert "mask AP" in [str(text) for text in table.columns[0].cells]


@pytest.mark.parametrize(("width", "sizes"), [(80, [6, 5]), (130, [11]), (40, [2, 2, 2, 2, 2, 1]), (10, [1] * 11)])
def test_many_detectors_are_several_tables(row: Compared, width: int, sizes: list[int]) -> None:
    many = [replace(row, entry=replace(row.entry, name=f"number{number}")) for number in range(11)]
    tables = screen_tables(many, "the caption", width)
    assert [len(table.columns) - 1 for table in tables] == sizes
    assert [table.caption for table in tables] == [""] * (len(sizes) - 1) + ["the caption"]
    headers = [str(column.header) for table in tables for column in table.columns[1:]]
    assert headers == [f"number{number} (mask_rcnn)" for number in range(11)]
    if width >= 80:  # no number is cut
        shown = StringIO()
        Console(width=width, file=shown).print(*tables)
        assert shown.getvalue().count(f"{row.result.mAP:.4f}") >= 11
