"""What several tests of region detectors check."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import detkit
from detkit.config import DetectConfig
from detkit.models import postprocess
from detkit.structures import Detections, Images, Predictions
from tests.toys.toy import CLASSES


def check_detections(found: Detections, predictions: Predictions, images: Images) -> None:
    """9 detections are predictions of their class, best first, and the best prediction is among them."""
    assert found.boxes.shape == (2, 9, 4)
    for row in range(2):
        boxes, scores, labels = found.image(row)
        assert len(labels) == 9
        assert (scores.diff() <= 0).all()
        assert scores[0] == predictions.scores[row].max()
        for box, score, label in zip(boxes, scores, labels):
            rows = (predictions.scores[row, :, label] == score).nonzero().flatten()
            height, width = images.sizes[row].tolist()
            limit = torch.tensor([width, height, width, height])
            candidates = predictions.boxes[row, rows, label].clamp(min=0).minimum(limit)
            assert (candidates - box).abs().amax(1).min() <= 1e-3


def check_unfitted(detector: Any, images: Images) -> None:
    """Before SVMs and a regression are fitted, scores are the softmax's, and boxes are the proposals."""
    detector.eval()
    with torch.inference_mode():
        predictions = detector.predict(images)
        found, _ = postprocess(predictions, images, DetectConfig(score_threshold=0.0, detections_per_image=9))
    assert predictions.boxes.shape == (2, 40, 2, 4)
    assert (predictions.scores[1, 20:] == -torch.inf).all()
    check_detections(found, predictions, images)
    proposals = images.proposals
    assert proposals is not None
    with torch.inference_mode():
        pooled = detector.features.pool(detector.features.prepare(images, detector), proposals.boxes)
        logits = detector.head.logits(pooled)
    assert logits.shape == (2, 40, 3)
    torch.testing.assert_close(predictions.scores[proposals.valid], logits.softmax(-1)[proposals.valid][:, :2])
    assert logits.std() > 1e-4
    torch.testing.assert_close(predictions.boxes, proposals.boxes.unsqueeze(2).expand(-1, -1, 2, -1))


def check_file(path: Path, checkpoint: str, score: float) -> None:
    """A file of detections of the toys' test images has what the loaded detector finds, image by image."""
    images = json.loads(path.read_text())["images"]
    assert [Path(entry["file"]).name for entry in images] == [f"test{number:03}.jpg" for number in range(9)]
    found = detkit.load(checkpoint, device="cpu").detect([entry["file"] for entry in images], score=score)
    for entry, one in zip(images, found, strict=True):
        boxes, scores, labels = one.image(0)
        assert len(labels) > 5
        assert [each["class"] for each in entry["detections"]] == [CLASSES[label] for label in labels.tolist()]
        assert [each["score"] for each in entry["detections"]] == pytest.approx(scores.tolist(), abs=1e-4)
        listed = torch.tensor([each["box"] for each in entry["detections"]])
        torch.testing.assert_close(listed, boxes, atol=0.01, rtol=0)
