"""The thresholds at which F1 is best, beside a search of all thresholds."""

import pytest
import torch

from detkit.evaluation import best_scores, coco_ap, voc_ap
from detkit.structures import DetectionSet, TruthSet
from tests.evaluation.sets import detection_set, truth_set

BOX, FAR = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)
IDS, CLASSES = tuple("abcdefgh"), ("cat", "dog", "cow", "hen")


def random_sets(seed: int) -> tuple[DetectionSet, TruthSet]:
    """A box an image, which some of the detections hit; scores of few values, so that many are equal."""
    random = torch.Generator().manual_seed(seed)
    objects = [(image, name, BOX) for image in IDS for name in CLASSES[:3] if torch.rand((), generator=random) < 0.6]
    rows = []
    for _ in range(60):
        image, label, score, hit = torch.rand(4, generator=random).tolist()
        rows.append((IDS[int(image * 8)], CLASSES[int(label * 4)], round(0.05 + score, 1), BOX if hit < 0.5 else FAR))
    return detection_set(rows, IDS, CLASSES), truth_set(objects, IDS, CLASSES)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_is_better(seed: int) -> None:
    detections, truth = random_sets(seed)
    found = best_scores(voc_ap(detections, truth), floor=0.01)
    for label, name in enumerate(CLASSES):
        objects = int((truth.labels == label).sum())

        def f1(threshold: float, label: int = label, objects: int = objects) -> float:
            kept = detections.part((detections.labels == label) & (detections.scores > threshold))
            result = voc_ap(kept, truth)
            return 2 * int(result.found[label]) / max(1, int(result.counted[label]) + objects)

        best = max(f1(score - 0.01) for score in [0.1 * step for step in range(12)])
        assert (f1(found[name]) if name in found else 0) == pytest.approx(best), name
    assert "hen" not in found  # there is none


def test_a_threshold_lies_between_scores() -> None:
    truth = truth_set([("a", "cat", BOX), ("b", "cat", BOX), ("a", "dog", BOX)])
    rows = [("a", "cat", 0.9, BOX), ("b", "cat", 0.6, BOX), ("a", "cat", 0.2, FAR), ("a", "dog", 0.5, BOX)]
    detections = detection_set(rows)
    assert best_scores(voc_ap(detections, truth), floor=0.1) == pytest.approx({"cat": 0.4, "dog": 0.3})
    assert best_scores(coco_ap(detections, truth), floor=0.1) == pytest.approx({"cat": 0.4, "dog": 0.3})
    assert best_scores(voc_ap(detection_set([]), truth), floor=0.1) == {}
