"""From predictions to detections: the index says which prediction each came from; `refine` reads the features."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detkit.config import Config, DetectConfig
from detkit.models import Detector, postprocess
from detkit.ops import clip, nms_dense, soft_nms_dense
from detkit.structures import Detections, Images, InputSpec, Predictions
from tests.builders import images_of, random_image

SIZES, ORIGINAL = torch.tensor([[40, 60], [64, 48]]), torch.tensor([[80, 90], [32, 24]])


def random_predictions(seed: int, rows: int, classes: int, per_class: bool, crowded: bool) -> Predictions:
    """Return boxes of which some cross the image's border; of two images, some rows of the second are padding."""
    random = torch.Generator().manual_seed(seed)
    shape = (2, rows, classes) if per_class else (2, rows)
    low = torch.rand(*shape, 2, generator=random) * (20 if crowded else 70) - 10
    boxes = torch.cat((low, low + 1 + torch.rand(*shape, 2, generator=random) * 30), -1)
    scores = torch.rand(2, rows, classes, generator=random)
    scores[1, rows // 2 + 1 :] = -torch.inf
    return Predictions(boxes, scores)


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 30),
    classes=st.integers(1, 4),
    per_class=st.booleans(),
    crowded=st.booleans(),
    nms=st.sampled_from(["hard", "linear", "gaussian"]),
    keep=st.integers(1, 40),
    threshold=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_the_index_is_that_of_the_prediction(
    seed: int, rows: int, classes: int, per_class: bool, crowded: bool, nms: str, keep: int, threshold: float
) -> None:
    predictions = random_predictions(seed, rows, classes, per_class, crowded)
    images = Images(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), SIZES, ORIGINAL, ("a", "b"))
    settings = DetectConfig(nms=nms, score_threshold=threshold, detections_per_image=keep, top_k=20)
    detections, index = postprocess(predictions, images, settings)
    assert index.shape == detections.labels.shape
    assert index.dtype == torch.int64
    assert torch.equal(index < 0, detections.labels < 0)
    assert (index[detections.labels < 0] == -1).all()
    assert not detections.boxes[index < 0].any()
    assert not detections.scores[index < 0].any()
    for image in range(2):
        check_image(image, detections, index[image], predictions, nms)
    if rows * classes > 2 and threshold == 0:
        assert (index[0] >= 0).any()


def check_image(image: int, detections: Detections, index: Tensor, predictions: Predictions, nms: str) -> None:
    """Check each detection against its prediction, box by box."""
    boxes, scores, labels = detections.image(image)
    index = index[index >= 0]
    height, width = SIZES[image].tolist()
    factor = ORIGINAL[image] / SIZES[image]
    seen = set()
    for box, score, label, row in zip(boxes, scores, labels.tolist(), index.tolist()):
        predicted = predictions.boxes[image, row]
        predicted = predicted[label] if predicted.ndim == 2 else predicted
        clipped = predicted.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
        torch.testing.assert_close(box, clipped * factor.flip(0).repeat(2))
        before = predictions.scores[image, row, label]
        assert score == before if nms == "hard" else score <= before
        assert before > -torch.inf
        seen.add((row, label))
    assert len(seen) == len(labels)  # none twice


class Marked(Detector):
    """A detector of which `refine` adds something to what it found, by what `predict` left for it."""

    def __init__(self) -> None:
        super().__init__(None, ("a",), InputSpec((64, 64)))
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.received: list[Any] = []

    def predict(self, images: Images) -> Predictions:
        boxes = torch.tensor([[8.0, 8, 24, 24]]).expand(len(images), -1, -1)
        brightness = images.pixels.float().mean((1, 2, 3))
        return Predictions(boxes, torch.full((len(images), 1, 1), 0.6), features={"brightness": brightness})

    def refine(self, images: Images, detections: Detections, features: Any) -> Detections:
        self.received.append((images, detections, features))
        bonus = features["brightness"].unsqueeze(1) / 1000
        return replace(detections, scores=torch.where(detections.labels >= 0, detections.scores + bonus, 0))


def test_refine_gets_the_features_of_the_predictions() -> None:
    detector = Marked()
    detector.experiment = Config(model=None)
    dark, bright = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.full((3, 64, 64), 200, dtype=torch.uint8)
    found = detector.detect([dark, bright], score=0.1)
    scores = [detections[0].score for detections in found]
    assert scores == pytest.approx([0.6, 0.8])
    ((images, detections, features),) = detector.received
    assert len(images) == 2
    assert features["brightness"].tolist() == [0, 200]
    assert detections.scores[:, 0].tolist() == pytest.approx([0.6, 0.6])


def test_without_a_refinement_detections_stay() -> None:
    detector = Detector(None, ("a",), InputSpec((8, 8)))
    images = images_of(random_image(8, 8))
    detections = Detections(torch.rand(1, 3, 4), torch.rand(1, 3), torch.zeros(1, 3, dtype=torch.int64))
    assert detector.refine(images, detections, None) is detections


@pytest.mark.parametrize("nms", ["hard", "linear", "gaussian"])
@pytest.mark.parametrize("thresholds", [None, torch.tensor([0.5, 0.1, torch.inf])], ids=["one", "each"])
def test_the_settings_are_those_of_the_suppression(nms: str, thresholds: Tensor | None) -> None:
    predictions = random_predictions(1, 60, 3, per_class=False, crowded=True)
    images = Images(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), SIZES, ORIGINAL, ("a", "b"))
    settings = DetectConfig(nms=nms, score_threshold=0.3, nms_iou=0.4, sigma=0.8, top_k=20, detections_per_image=35)
    found, index = postprocess(predictions, images, settings, thresholds)
    boxes = clip(predictions.boxes, SIZES)
    limits: dict[str, Any] = {
        "iou": 0.4,
        "top_k": 20,
        "max_out": 35,
        "score": 0.3 if thresholds is None else thresholds,
    }
    if nms == "hard":
        expected = nms_dense(boxes, predictions.scores, **limits)
    else:
        *expected, scores = soft_nms_dense(boxes, predictions.scores, method=nms, sigma=0.8, **limits)
        assert torch.equal(found.scores, scores)
    assert torch.equal(index, expected[0])
    assert torch.equal(found.labels, expected[1])
    present = set(found.labels[found.labels >= 0].tolist())
    assert present == ({0, 1, 2} if thresholds is None else {0, 1})
