"""Soft-NMS beside a slow loop in float64, written from Bodla et al. (ICCV 2017), figure 3 and section 3."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit import ops
from tests.ops.reference import iou as iou_of
from tests.ops.reference import random_boxes

ALL = 10**9


def soft_loop(
    boxes: Tensor, scores: Tensor, *, method: str, iou: float, sigma: float, top_k: int, max_out: int, score: Tensor
) -> list[tuple[int, int, float]]:
    """One image: boxes (A, 4) or (A, C, 4), scores (A, C) -> (index, label, score), best first."""
    kept = []
    for label in range(scores.shape[1]):
        own = boxes.double().tolist() if boxes.ndim == 2 else boxes[:, label].double().tolist()
        start = scores[:, label].double().tolist()
        least = float(score[label])
        order = sorted((i for i in range(len(own)) if start[i] > least), key=lambda i: (-start[i], i))[:top_k]
        values = {i: start[i] for i in order if all(map(math.isfinite, own[i]))}
        while values:
            best = min(values, key=lambda i: (-values[i], i))
            value = values.pop(best)
            if value > least:
                kept.append((best, label, value))
            for i in values:
                overlap = iou_of(own[best], own[i])
                factor = math.exp(-(overlap**2) / sigma) if method == "gaussian" else 1 - overlap * (overlap >= iou)
                values[i] *= factor if values[i] > 0 else 1
    return sorted(kept, key=lambda entry: (-entry[2], entry[0], entry[1]))[:max_out]


def rows(index: Tensor, label: Tensor, score: Tensor) -> list[list[tuple[int, int, float]]]:
    """Rows without their padding, which must come last."""
    out = []
    for one in zip(index.tolist(), label.tolist(), score.tolist()):
        triples = list(zip(*one))
        real = [triple for triple in triples if triple[0] >= 0]
        assert triples == real + [(-1, -1, 0.0)] * (len(triples) - len(real))
        out.append(real)
    return out


def assert_equal(found: list[tuple[int, int, float]], expected: list[tuple[int, int, float]]) -> None:
    assert [one[:2] for one in found] == [one[:2] for one in expected]
    assert [one[2] for one in found] == pytest.approx([one[2] for one in expected], abs=1e-5)


@given(
    st.integers(0, 10**6),
    st.integers(0, 25),
    st.sampled_from(["linear", "gaussian"]),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from([0.1, 0.5, 2.0]),
    st.sampled_from([1, 6, ALL]),
    st.sampled_from([1, 5, 90]),
    st.booleans(),
    st.sampled_from([-0.5, 0.01, 0.3]),
)
@settings(max_examples=150)
def test_equals_the_loop(
    seed: int,
    count: int,
    method: str,
    iou: float,
    sigma: float,
    top_k: int,
    max_out: int,
    per_class: bool,
    score: float,
) -> None:
    torch.manual_seed(seed)
    boxes = random_boxes(3, count, 3) if per_class else random_boxes(3, count)
    scores = torch.rand(3, count, 3) * 1.2 - 0.2
    boxes[torch.rand(boxes.shape[:-1]) < 0.05, 2] = [math.nan, math.inf][seed % 2]
    scores[torch.rand(scores.shape) < 0.05] = math.nan
    least = torch.tensor([score, score + 0.1, math.inf if seed % 3 == 0 else score])
    arguments = {"method": method, "iou": iou, "sigma": sigma, "top_k": top_k, "max_out": max_out}
    found = ops.soft_nms_dense(boxes, scores, score=least, **arguments)
    assert found[0].shape == found[1].shape == found[2].shape == (3, max_out)
    for i, own in enumerate(rows(*found)):
        assert_equal(own, soft_loop(boxes[i], scores[i], score=least, **arguments))


def test_the_paper_s_horses() -> None:
    """Figure 1: a box of .8 that overlaps one of .95 by more than the threshold stays, with a lower score."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 6], [20, 0, 30, 10]]])
    scores = torch.tensor([[[0.95], [0.8], [0.5]]])
    keys = {"iou": 0.3, "sigma": 0.5, "top_k": 9, "max_out": 4}
    index, _, score = ops.soft_nms_dense(boxes, scores, method="linear", **keys)
    assert index.tolist() == [[0, 2, 1, -1]]
    assert score[0].tolist() == pytest.approx([0.95, 0.5, 0.8 * 0.4, 0])
    index, _, score = ops.soft_nms_dense(boxes, scores, method="gaussian", **keys)
    assert score[0].tolist() == pytest.approx([0.95, 0.5, 0.8 * math.exp(-0.36 / 0.5), 0])
    # of equal boxes the second falls to 0, and then below any threshold
    index, _, _ = ops.soft_nms_dense(boxes[:, [0, 0]], scores[:, :2], method="linear", score=0.0, **keys)
    assert index.tolist() == [[0, -1, -1, -1]]
    # IoU equal to the threshold is decayed
    index, _, score = ops.soft_nms_dense(boxes[:, :2], scores[:, :2], method="linear", **{**keys, "iou": 0.6})
    assert score[0, 1].item() == pytest.approx(0.32)
    index, _, score = ops.soft_nms_dense(boxes[:, :2], scores[:, :2], method="linear", **{**keys, "iou": 0.61})
    assert score[0, 1].item() == pytest.approx(0.8)


@given(st.integers(0, 10**6), st.sampled_from(["linear", "gaussian"]))
@settings(max_examples=25)
def test_batch_equals_singles(seed: int, method: str) -> None:
    torch.manual_seed(seed)
    boxes, scores = random_boxes(4, 30), torch.rand(4, 30, 2)
    scores[1] = 0
    keys = {"method": method, "iou": 0.3, "sigma": 0.5, "top_k": 9, "max_out": 12, "score": 0.05}
    together = ops.soft_nms_dense(boxes, scores, **keys)
    for i in range(4):
        single = ops.soft_nms_dense(boxes[i : i + 1], scores[i : i + 1], **keys)
        for one, all_ in zip(single, together):
            assert torch.equal(one[0], all_[i])


def test_ties_go_to_the_lower_index_and_the_lower_label() -> None:
    boxes = (torch.arange(5.0).view(1, 5, 1) * 20 + torch.tensor([0.0, 0, 10, 10])).expand(1, 5, 4)
    scores = torch.full((1, 5, 2), 0.5)
    keys = {"method": "linear", "iou": 0.3, "sigma": 0.5, "top_k": 3, "max_out": 4}
    index, label, _ = ops.soft_nms_dense(boxes, scores, **keys)
    assert index.tolist() == [[0, 0, 1, 1]]
    assert label.tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize(("batch", "count", "classes"), [(0, 5, 2), (2, 0, 2), (2, 3, 0), (2, 3, 2)])
def test_nothing_to_do(batch: int, count: int, classes: int, device: torch.device) -> None:
    boxes, scores = random_boxes(batch, count).to(device), torch.rand(batch, count, classes, device=device)
    keys = {"method": "gaussian", "iou": 0.3, "sigma": 0.5, "top_k": 9, "max_out": 6, "score": 2.0}
    index, label, score = ops.soft_nms_dense(boxes, scores, **keys)
    assert index.tolist() == label.tolist() == [[-1] * 6] * batch
    assert score.tolist() == [[0.0] * 6] * batch
    assert ops.soft_nms_dense(boxes, scores, **{**keys, "score": 0.0, "max_out": 0})[0].shape == (batch, 0)
    assert (ops.soft_nms_dense(boxes, scores, **{**keys, "score": 0.0, "top_k": 0})[0] == -1).all()


def test_unknown_method() -> None:
    with pytest.raises(ValueError, match="method 'cubic' is not one of linear, gaussian"):
        ops.soft_nms_dense(
            random_boxes(1, 2), torch.rand(1, 2, 1), method="cubic", iou=0.5, sigma=0.5, top_k=1, max_out=1
        )
