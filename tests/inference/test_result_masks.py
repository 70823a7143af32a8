"""Masks of detections: at hand as pixels, in JSON as run lengths, drawn, and from ONNX files as from torch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import detkit
from detkit import rle, viz
from detkit.export.onnx import export_onnx
from detkit.inference.backends import open_detector
from detkit.inference.results import ImageDetections
from detkit.ops import object_masks
from tests import zoo
from tests.builders import sample_image, save_checkpoint
from tests.inference.test_results import found


def masked(count: int = 4) -> ImageDetections:
    """Detections whose masks are the upper left quarters of their boxes."""
    small = torch.zeros(count, 28, 28)
    small[:, :14, :14] = 1
    return replace(found(count), extra={"masks": small})


def test_masks_are_pixels_of_the_image() -> None:
    masks = masked().masks
    assert masks is not None
    assert masks.shape == (4, 40, 60)
    assert masks.dtype == torch.bool
    ys, xs = np.nonzero(masks[1].numpy())  # of the box that is the image
    assert (ys.min(), xs.min()) == (0, 0)
    assert abs(ys.max() - 19.5) <= 1
    assert abs(xs.max() - 29.5) <= 1  # boxes are taken to whole pixels
    assert torch.equal(masked()[[2, 0]].masks, masks[[2, 0]])  # pyright: ignore
    assert found().masks is None
    empty = masked(0).masks
    assert empty is not None
    assert empty.shape == (0, 40, 60)


def test_json_has_run_lengths() -> None:
    results, entries = masked(), masked().to_coco(7)
    masks = [rle.parse(entry["segmentation"], (40, 60)) for entry in entries]
    assert np.array_equal(rle.decode(masks, (40, 60)), results.masks)  # pyright: ignore
    assert [one["mask"] for one in results.to_dict()["detections"]] == [entry["segmentation"] for entry in entries]
    assert "segmentation" not in found().to_coco(7)[0]
    assert "mask" not in found().to_dict()["detections"][0]


def test_masks_are_drawn() -> None:
    results = masked()[[1]]
    plain = viz.draw(results.pixels, results.boxes, results.labels, results.classes, scores=results.scores)
    changed = (results.plot() != plain).any(-1)
    assert results.masks is not None
    assert changed[results.masks[0].numpy()].mean() > 0.25  # but for the name and the outline
    assert not changed[~results.masks[0].numpy()].any()


@pytest.mark.parametrize("keys", [{}, {"neck": "fpn", "channels": 8, "scales": [2.0]}])
def test_onnx_files_find_the_same_masks(tmp_path: Path, keys: dict) -> None:
    pytest.importorskip("onnxruntime")
    detector = zoo.trained("mask_rcnn", **keys)
    checkpoint = save_checkpoint(tmp_path / "best.pt", detector)
    export_onnx(checkpoint, tmp_path / "model.onnx")
    assert {path.name for path in tmp_path.glob("*.onnx")} == {"model-rpn.onnx", "model-head.onnx", "model-mask.onnx"}
    theirs, _ = open_detector(str(tmp_path / "model-rpn.onnx"))
    image = sample_image(96, 112)
    one, other = (model.detect(image, score=0.05)[0] for model in (detkit.load(checkpoint), theirs))
    assert len(one) == len(other) > 0
    torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(one.extra["masks"], other.extra["masks"], rtol=1e-3, atol=1e-3)
    assert one.extra["masks"].std() > 0.01


def test_masks_pasted_in_parts_are_those_pasted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, boxes = torch.rand(7, 28, 28), found().boxes[[0, 1, 2, 3, 0, 1, 2]]
    whole = object_masks(masks, boxes, (40, 60))
    monkeypatch.setattr("detkit.ops.masks.PIXELS", 2 * 40 * 60)
    assert torch.equal(object_masks(masks, boxes, (40, 60)), whole)
