"""Recall and MABO of proposals against plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit.errors import UserError
from detkit.evaluation import proposal_recall
from detkit.structures import TruthSet
from tests.evaluation.sets import truth_set

CLASSES = ("cat", "dog", "owl")


def overlap(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow(proposals: list[Tensor], truth: TruthSet, number: int | None, iou: float) -> tuple[float, list[float]]:
    """(recall, ABO of each class)."""
    best: list[list[float]] = [[] for _ in truth.classes]
    for box, label, ignore, image in zip(*(x.tolist() for x in (truth.boxes, truth.labels, truth.ignore, truth.image))):
        if not ignore:
            boxes = proposals[image].tolist()[:number]
            best[label].append(max((overlap(box, other) for other in boxes), default=0.0))
    every = [value for values in best for value in values]
    recall = sum(value >= iou for value in every) / len(every) if every else math.nan
    return recall, [sum(values) / len(values) if values else math.nan for values in best]


def random_boxes(generator: torch.Generator, count: int) -> Tensor:
    corner = torch.randint(0, 40, (count, 2), generator=generator)
    return torch.cat((corner, corner + torch.randint(1, 30, (count, 2), generator=generator)), 1).float()


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(0, 5), st.integers(0, 12), st.integers(0, 40))
def test_equals_loops(seed: int, images: int, objects: int, most: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    objects = objects if images else 0
    truth = TruthSet(
        boxes=random_boxes(generator, objects),
        labels=torch.randint(3, (objects,), generator=generator),
        ignore=torch.rand(objects, generator=generator) < 0.3,
        image=torch.randint(max(images, 1), (objects,), generator=generator),
        ids=tuple(map(str, range(images))),
        classes=CLASSES,
    )
    counts = torch.randint(most + 1, (images,), generator=generator).tolist()
    proposals = [random_boxes(generator, count) for count in counts]
    numbers, ious = (7, None, 1, 20), (0.5, 0.3, 1.0)
    result = proposal_recall(proposals, truth, numbers, ious)
    assert result.recall.shape == (4, 3)
    for row, number in enumerate(numbers):
        taken = [count if number is None else min(count, number) for count in counts]
        assert result.boxes[row].item() == pytest.approx(np.mean(taken) if taken else math.nan, nan_ok=True)
        for column, iou in enumerate(ious):
            recall, abo = slow(proposals, truth, number, iou)
            assert result.recall[row, column].item() == pytest.approx(recall, nan_ok=True)
            assert result.abo[row].tolist() == pytest.approx(abo, nan_ok=True)
        means = [value for value in abo if value == value]
        assert result.mabo[row].item() == pytest.approx(np.mean(means) if means else math.nan, nan_ok=True)


def test_by_hand() -> None:
    truth = truth_set(
        [
            ("a", "cat", (0, 0, 10, 10)),
            ("a", "cat", (20, 20, 30, 30)),
            ("b", "dog", (0, 0, 10, 20)),
            ("b", "dog", (50, 50, 60, 60), True),
        ]
    )
    # exactly a half of the first cat, then the second cat; a quarter of the dog, and the difficult one
    boxes = [np.array([[0, 0, 10, 5], [20, 20, 30, 30]], np.float32), np.array([[0, 0, 10, 5], [50, 50, 60, 60]])]
    result = proposal_recall(boxes, truth, (1, None), (0.5, 0.51))
    assert result.objects.tolist() == [2, 1]
    assert result.boxes.tolist() == [1, 2]
    assert result.recall.tolist() == [[1 / 3, 0], [2 / 3, 1 / 3]]
    assert result.abo.tolist() == [[0.25, 0.25], [0.75, 0.25]]
    assert result.mabo.tolist() == [0.25, 0.5]
    assert result.numbers == (1, None)


def test_classes_without_objects_do_not_enter_the_mean() -> None:
    truth = truth_set([("a", "cat", (0, 0, 10, 10)), ("a", "dog", (0, 0, 9, 9), True)])
    result = proposal_recall([torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(0, 4)], truth)
    assert math.isnan(result.abo[0, 1])
    assert result.mabo.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"numbers": (0,)}, "expected at least 1"), ({"ious": (0.0,)}, "above 0"), ({"ious": (1.5,)}, "up to 1")],
)
def test_says_what_is_wrong(keys: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        proposal_recall([torch.zeros(0, 4)] * 2, truth_set([]), **keys)
    with pytest.raises(ValueError, match="each of 2 images, got 1"):
        proposal_recall([torch.zeros(0, 4)], truth_set([]))
