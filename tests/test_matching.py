"""What `assert_same_detections` takes for the same, and what it doesn't."""

import pytest
import torch

from tests.matching import Found, assert_same_detections

THRESHOLDS = {"score": 0.1, "iou": 0.5, "keep": 30}


def detections(count: int = 20) -> Found:
    """Boxes of 10 pixels far from each other, of two labels, with scores from .9 down."""
    low = torch.arange(count).unsqueeze(1) * torch.tensor([30.0, 0])
    return torch.cat((low, low + 10), 1), torch.linspace(0.9, 0.2, count), torch.arange(count) % 2


def with_one_more(found: Found, box: list[float], score: float, label: int) -> Found:
    boxes, scores, labels = found
    return (
        torch.cat((boxes, torch.tensor([box]))),
        torch.cat((scores, torch.tensor([score]))),
        torch.cat((labels, torch.tensor([label]))),
    )


def without(found: Found, row: int) -> Found:
    boxes, scores, labels = (torch.cat((x[:row], x[row + 1 :])) for x in found)
    return boxes, scores, labels


def same(one: Found, other: Found, **thresholds) -> None:
    """Either way round."""
    assert_same_detections(one, other, **{**THRESHOLDS, **thresholds})
    assert_same_detections(other, one, **{**THRESHOLDS, **thresholds})


def different(one: Found, other: Found, words: str = "clear of every threshold", **thresholds) -> None:
    for pair in ((one, other), (other, one)):
        with pytest.raises(AssertionError, match=words):
            assert_same_detections(*pair, **{**THRESHOLDS, **thresholds})


def test_order_and_rounding_do_not_matter() -> None:
    boxes, scores, labels = detections()
    order = torch.randperm(20)
    same(detections(), (boxes[order] + 0.01, scores[order] - 5e-5, labels[order]))
    nothing = detections(0)
    same(nothing, nothing)


def test_another_score_box_or_label_does() -> None:
    boxes, scores, labels = detections()
    for tensor, change in ((boxes, 8.0), (scores, 0.002), (labels, 1)):
        tensor[7] += change
        different(detections(), (boxes, scores, labels))
        tensor[7] -= change
    different(detections(), without(detections(), 3))
    # twice the same is not once
    different(detections(), with_one_more(detections(), boxes[3].tolist(), float(scores[3]), 1))


def test_what_is_beside_the_score_threshold_or_the_last_may_be_missing() -> None:
    far = [700.0, 0, 710, 10]
    same(detections(), with_one_more(detections(), far, 0.10005, 0))
    different(detections(), with_one_more(detections(), far, 0.1005, 0))
    full = with_one_more(without(detections(), 19), far, 0.20005, 0)
    same(detections(), full, keep=20)
    different(detections(), full)


def test_what_nms_may_have_decided_may_differ() -> None:
    """A box that overlaps another by the threshold; one for the other where both overlap by more."""
    beside, clear = [270.0, 0, 280, 20 - 0.01], [270.0, 0, 280, 19.9]
    same(detections(), with_one_more(detections(), beside, 0.3, 1))
    different(detections(), with_one_more(detections(), clear, 0.3, 1))
    different(detections(), with_one_more(detections(), beside, 0.3, 0))
    different(detections(), with_one_more(detections(), beside, 0.3, 1), iou=None)
    score = float(detections()[1][9])
    same(detections(), with_one_more(without(detections(), 9), [270.0, 0, 280, 13], score, 1))


def test_more_than_one_in_twenty_is_not_rounding() -> None:
    far = torch.arange(3).unsqueeze(1) * 30 + torch.tensor([700.0, 0, 710, 10])
    more = detections()
    for box in far.tolist()[:2]:
        more = with_one_more(more, box, 0.1, 0)
    different(detections(), more, "2 of 22")


def test_what_such_a_box_removes_may_differ_too() -> None:
    """A box beside the threshold of NMS stands on one side, and removes another one there."""
    beside, behind = [270.0, 0, 280, 20 - 0.01], [270.0, 7, 280, 20]
    one = with_one_more(detections(), beside, 0.3, 1)
    other = with_one_more(detections(), behind, 0.25, 1)
    same(one, other)
    different(detections(), other)
    different(one, with_one_more(detections(), behind, 0.35, 1))
