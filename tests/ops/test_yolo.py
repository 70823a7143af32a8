"""YOLOv1's assignment, decoding and loss against slow loops written from the paper's section 2."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit import ops
from detkit.ops import BACKGROUND, IGNORED, Cells
from detkit.ops.yolo import encode_cells, responsible
from tests.ops import reference
from tests.ops.reference import random_boxes

SIZE = (96, 128)  # height, width


def scene(seed: int, batch: int = 3, count: int = 6, grid: int = 4, each: int = 2, classes: int = 3) -> dict:
    """Objects, some of them padding or ignored, and raw outputs of which some boxes overlap nothing."""
    torch.manual_seed(seed)
    valid = torch.rand(batch, count) < 0.7
    raw = torch.randn(batch, grid * grid, each, 4) * torch.tensor([1.0, 1.0, 0.5, 0.5])
    raw[torch.rand(raw.shape[:3]) < 0.3] = 0  # without area: IoU 0
    return {
        "boxes": random_boxes(batch, count, size=80.0, side=48.0).clamp(max=96) * valid.unsqueeze(-1),
        "labels": torch.where(valid, torch.randint(0, classes, (batch, count)), -1),
        "ignore": torch.rand(batch, count) < 0.3,
        "priority": torch.rand(batch, count),
        "cells": Cells(raw, torch.randn(batch, grid * grid, each), torch.randn(batch, grid * grid, classes)),
        "grid": grid,
    }


def assigned(s: dict) -> Tensor:
    return ops.assign_cells(s["boxes"], s["labels"] >= 0, s["ignore"], s["grid"], SIZE, s["priority"])


def slow_cells(s: dict, image: int) -> list[int]:
    """Object by object: the centre's cell."""
    result = [BACKGROUND] * s["grid"] ** 2
    order = sorted(range(s["labels"].shape[1]), key=lambda n: -s["priority"][image, n].item())
    for ignored in (True, False):
        for n in order:
            if s["labels"][image, n] < 0 or bool(s["ignore"][image, n]) != ignored:
                continue
            x1, y1, x2, y2 = s["boxes"][image, n].tolist()
            row, column = ((a + b) / 2 / side * s["grid"] for a, b, side in ((y1, y2, SIZE[0]), (x1, x2, SIZE[1])))
            cell = min(int(row), s["grid"] - 1) * s["grid"] + min(int(column), s["grid"] - 1)
            if result[cell] < 0:
                result[cell] = IGNORED if ignored else n
    return result


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 4, 7]), st.integers(1, 12))
@settings(max_examples=60)
def test_cells_equal_the_loop(seed: int, grid: int, count: int) -> None:
    s = scene(seed, count=count, grid=grid)
    assert assigned(s).tolist() == [slow_cells(s, image) for image in range(3)]


def test_of_two_objects_in_a_cell_the_first_or_the_one_of_priority() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [2, 2, 8, 8], [100, 70, 128, 96]]])
    valid, none = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool)
    assert ops.assign_cells(boxes, valid, None, 2, SIZE).tolist() == [[0, -1, -1, 2]]
    assert ops.assign_cells(boxes, valid, none, 2, SIZE, torch.tensor([[0.1, 0.2, 0.3]])).tolist() == [[1, -1, -1, 2]]
    hidden = torch.tensor([[True, False, True]])
    assert ops.assign_cells(boxes, valid, hidden, 2, SIZE).tolist() == [[1, -1, -1, IGNORED]]
    assert ops.assign_cells(boxes, none, hidden, 2, SIZE).tolist() == [[-1] * 4]
    assert ops.assign_cells(boxes[:, :0], valid[:, :0], none[:, :0], 2, SIZE).tolist() == [[-1] * 4]
    edge = torch.tensor([[[128.0, 96, 128, 96]]])  # a centre on the border belongs to the last cell
    assert ops.assign_cells(edge, valid[:, :1], None, 2, SIZE).tolist() == [[-1, -1, -1, 0]]


def test_boxes_of_a_known_grid() -> None:
    raw = torch.zeros(1, 4, 1, 4)
    raw[0, 1, 0] = torch.tensor([0.5, 0.25, 0.5, -1.0])  # cell of row 0, column 1
    x, y, w, h = 0.75 * 128, 0.125 * 96, 0.25 * 128, 1.0 * 96
    wanted = torch.tensor([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    torch.testing.assert_close(ops.decode_cells(raw, SIZE)[0, 1, 0], wanted)


@given(st.integers(0, 10**6), st.sampled_from([1, 3, 7]))
@settings(max_examples=30)
def test_encoding_undoes_decoding(seed: int, grid: int) -> None:
    torch.manual_seed(seed)
    raw = torch.rand(2, grid * grid, 3, 4) * 0.9 + 0.1  # the root of a small side has few digits
    torch.testing.assert_close(encode_cells(ops.decode_cells(raw, SIZE), SIZE), raw, rtol=1e-4, atol=1e-4)


def test_responsible_is_the_best_iou_else_the_least_rmse() -> None:
    truth = torch.tensor([0.4, 0.4, 0.6, 0.6])
    far, near, overlapping, better = [
        torch.tensor(box)
        for box in ((0.0, 0.0, 0.1, 0.1), (0.2, 0.2, 0.4, 0.4), (0.0, 0.0, 0.9, 0.9), (0.4, 0.4, 0.6, 0.61))
    ]
    cases = [
        ((far, near), 1),  # neither overlaps: the least error
        ((near, far), 0),
        ((near, overlapping), 1),  # any overlap wins over a smaller error
        ((overlapping, better, near), 1),
        ((better, better), 0),  # a tie goes to the first
        ((far, far), 0),
    ]
    for boxes, wanted in cases:
        best, iou = responsible(torch.stack(boxes), truth)
        assert best.item() == wanted
        assert iou.tolist() == pytest.approx([reference.iou(box.tolist(), truth.tolist()) for box in boxes], abs=1e-6)


def slow_loss(s: dict, index: Tensor, coord: float, noobj: float) -> dict[str, float]:
    """Equation 3, cell by cell and box by box, in float64; half of it, a mean over images."""
    grid, total = s["grid"], dict.fromkeys(("centre", "side", "object", "no_object", "class"), 0.0)
    raw, confidence, classes = (part.double().tolist() for part in s["cells"])
    batch, each = len(raw), len(raw[0][0])
    for b in range(batch):
        for i in range(grid * grid):
            n, row, column = index[b, i].item(), i // grid, i % grid
            if n == IGNORED:
                continue
            best = -1
            if n >= 0:
                x1, y1, x2, y2 = s["boxes"][b, n].double().tolist()
                x, y = (x1 + x2) / 2 / SIZE[1], (y1 + y2) / 2 / SIZE[0]
                w, h = (x2 - x1) / SIZE[1], (y2 - y1) / SIZE[0]
                overlaps, errors = [], []
                for px, py, pw, ph in raw[b][i]:
                    cx, cy, side, tall = (px + column) / grid, (py + row) / grid, pw**2, ph**2
                    mine = [cx - side / 2, cy - tall / 2, cx + side / 2, cy + tall / 2]
                    overlaps.append(reference.iou(mine, [x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
                    errors.append((cx - x) ** 2 + (cy - y) ** 2 + (side - w) ** 2 + (tall - h) ** 2)
                ranked = [-value for value in overlaps] if max(overlaps) > 0 else errors
                best = ranked.index(min(ranked))
                px, py, pw, ph = raw[b][i][best]
                total["centre"] += coord * ((px - (x * grid - column)) ** 2 + (py - (y * grid - row)) ** 2)
                total["side"] += coord * ((pw - math.sqrt(w)) ** 2 + (ph - math.sqrt(h)) ** 2)
                total["object"] += (confidence[b][i][best] - overlaps[best]) ** 2
                for c, p in enumerate(classes[b][i]):
                    total["class"] += (p - (c == s["labels"][b, n].item())) ** 2
            for j in range(each):
                if j != best:
                    total["no_object"] += noobj * confidence[b][i][j] ** 2
    return {name: value / 2 / batch for name, value in total.items()}


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3]), st.sampled_from([(5.0, 0.5), (1.0, 2.0)]))
@settings(max_examples=40)
def test_loss_equals_the_papers_equation(seed: int, each: int, weights: tuple[float, float]) -> None:
    s = scene(seed, each=each)
    index = assigned(s)
    losses = ops.yolo_loss(s["cells"], index, s["boxes"], s["labels"], SIZE, *weights)
    wanted = slow_loss(s, index, *weights)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_gradients_go_only_where_the_paper_has_terms() -> None:
    s = scene(1)
    cells = Cells(*(part.requires_grad_() for part in s["cells"]))
    index = assigned(s)
    sum(ops.yolo_loss(cells, index, s["boxes"], s["labels"], SIZE).values()).backward()
    boxes, confidence, classes = (part.grad for part in cells)
    assert boxes is not None
    assert confidence is not None
    assert classes is not None
    found, ignored = index >= 0, index == IGNORED
    assert ((boxes != 0).any(-1).sum(-1) == found.long()).all()  # one responsible box a cell with an object
    assert (confidence[ignored] == 0).all()
    assert ((classes != 0).any(-1) == found).all()
    # the confidence's target is a number: through the IoU no gradient reaches the boxes
    only = Cells(*(part.detach().clone().requires_grad_() for part in s["cells"]))
    ops.yolo_loss(only, index, s["boxes"], s["labels"], SIZE)["object"].backward()
    assert only.boxes.grad is None
    assert only.confidence.grad is not None


@pytest.mark.parametrize("objects", [0, 1])
def test_images_without_objects_have_only_the_no_object_term(objects: int) -> None:
    s = scene(0)
    boxes, labels = torch.zeros(3, objects, 4), torch.full((3, objects), -1)
    index = ops.assign_cells(boxes, labels >= 0, None, 4, SIZE)
    losses = ops.yolo_loss(s["cells"], index, boxes, labels, SIZE)
    assert losses["no_object"].item() == pytest.approx(0.25 * s["cells"].confidence.square().sum().item() / 3)
    assert sum(loss.item() for name, loss in losses.items() if name != "no_object") == 0


def test_padding_and_ignored_objects_change_nothing_and_halves_are_widened() -> None:
    s = scene(5)
    index = assigned(s)
    losses = ops.yolo_loss(s["cells"], index, s["boxes"], s["labels"], SIZE)
    unused = (s["labels"] < 0) | s["ignore"]
    junk = torch.where(unused.unsqueeze(-1), 1e30, s["boxes"])
    again = ops.yolo_loss(s["cells"], index, junk, s["labels"], SIZE)
    assert {name: loss.item() for name, loss in losses.items()} == {name: loss.item() for name, loss in again.items()}
    half = ops.yolo_loss(Cells(*(part.bfloat16() for part in s["cells"])), index, s["boxes"], s["labels"], SIZE)
    assert all(loss.dtype == torch.float32 for loss in half.values())


def test_tiny_and_huge_boxes_stay_finite() -> None:
    boxes = torch.tensor([[[5.0, 5, 5, 5], [0, 0, 128, 96], [60, 60, 60.0001, 60.0001]]])
    labels = torch.zeros(1, 3, dtype=torch.int64)
    raw = torch.tensor([1e4, -1e4, 1e4, 1e4]).repeat(1, 16, 2, 1).requires_grad_()
    cells = Cells(raw, torch.zeros(1, 16, 2), torch.zeros(1, 16, 1))
    index = ops.assign_cells(boxes, labels >= 0, None, 4, SIZE)
    total = sum(ops.yolo_loss(cells, index, boxes, labels, SIZE).values())
    assert isinstance(total, Tensor)
    total.backward()
    assert total.isfinite()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()
