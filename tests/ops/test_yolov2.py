"""YOLOv2's places, loss and passthrough layer, against float64 loops written from the formulas of darknet's layers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit import ops
from detkit.ops.kmeans import shape_iou
from tests.ops import reference

ROWS, COLUMNS, CLASSES = 3, 4, 3
ANCHORS = torch.tensor([[1.0, 1.5], [2.5, 1.0], [3.0, 3.0]])
PLACES = ops.lay_places([ops.AnchorMap(ROWS, COLUMNS, (1.0, 1.0), ANCHORS, torch.arange(3))])  # pixels are cells


def scene(seed: int, count: int = 4, batch: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    labels = torch.where(torch.rand(batch, count) < 0.8, torch.randint(CLASSES, (batch, count)), -1)
    centre = torch.rand(batch, count, 2) * torch.tensor([COLUMNS, ROWS])
    sides = torch.rand(batch, count, 2) * 3 + 0.2
    return {
        "raw": torch.randn(batch, ROWS * COLUMNS * len(ANCHORS), 5 + CLASSES) * 1.5,
        "boxes": torch.cat((centre - sides / 2, centre + sides / 2), -1) * (labels >= 0).unsqueeze(-1),
        "labels": labels,
        "ignore": torch.rand(batch, count) < 0.2,
        "priority": torch.rand(batch, count),
    }


def losses_of(s: dict[str, Tensor], prior: float, raw: Tensor | None = None) -> dict[str, Tensor]:
    raw = s["raw"] if raw is None else raw
    predicted = ops.decode_places(raw, PLACES)
    objects = (s["boxes"], s["labels"] >= 0, s["ignore"])
    match = ops.assign_places(predicted, *objects, ANCHORS, PLACES, s["priority"])
    places = (raw, predicted, match, s["boxes"], s["labels"], PLACES)
    return ops.yolov2_loss(*places, prior=prior, coord=1.0, positive=5.0, negative=0.7, classes=1.3)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_gradient(s: dict[str, Tensor], prior: float) -> list[list[list[float]]]:
    """What the region layer's deltas are, negative since it descends by them: place by place and object by object.

    Scales: coord 1, object 5, noobject .7, class 1.3; thresh .6; rescore and bias_match.
    """
    raw, gradient = s["raw"].double().tolist(), []
    each = len(ANCHORS)
    for b, of_image in enumerate(raw):
        objects = [n for n in range(s["labels"].shape[1]) if s["labels"][b, n] >= 0]
        truth = {n: s["boxes"][b, n].double().tolist() for n in objects}
        boxes, rows = [], []
        for place, x in enumerate(of_image):
            cell, a = divmod(place, each)
            row, column = divmod(cell, COLUMNS)
            cx, cy = column + sigmoid(x[0]), row + sigmoid(x[1])
            w, h = (side * math.exp(value) for side, value in zip(ANCHORS[a].tolist(), x[2:4]))
            boxes.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
            delta = [0.0] * len(x)
            best = max((reference.iou(boxes[-1], truth[n]) for n in objects), default=0.0)
            o = sigmoid(x[4])
            delta[4] = 0.0 if best > 0.6 else 0.7 * (0 - o) * o * (1 - o)
            for k in (0, 1):
                delta[k] = prior * (0.5 - sigmoid(x[k])) * sigmoid(x[k]) * (1 - sigmoid(x[k]))
                delta[k + 2] = prior * (0 - x[k + 2])
            rows.append(delta)
        taken: set[int] = set()
        # the last of a place counts; those that are not trained on come first, and leave the objectness alone
        order = sorted(objects, key=lambda n: (not s["ignore"][b, n], s["priority"][b, n].item()))
        for n in order:
            x1, y1, x2, y2 = truth[n]
            cx, cy, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
            column, row = min(int(cx), COLUMNS - 1), min(int(cy), ROWS - 1)
            shapes = [reference.iou([0, 0, w, h], [0, 0, *anchor]) for anchor in ANCHORS.double().tolist()]
            a = shapes.index(max(shapes))
            place = (row * COLUMNS + column) * each + a
            x, delta = of_image[place], rows[place]
            if s["ignore"][b, n]:
                delta[4] = 0.0
                continue
            taken.add(place)
            for k, target in ((0, cx - column), (1, cy - row)):
                delta[k] = (target - sigmoid(x[k])) * sigmoid(x[k]) * (1 - sigmoid(x[k]))
            for k, side in ((0, w), (1, h)):
                delta[k + 2] = math.log(side / ANCHORS[a, k].item()) - x[k + 2]
            o = sigmoid(x[4])
            delta[4] = 5 * (reference.iou(boxes[place], truth[n]) - o) * o * (1 - o)
            total = sum(math.exp(value) for value in x[5:])
            delta[5:] = [
                1.3 * ((c == s["labels"][b, n].item()) - math.exp(value) / total) for c, value in enumerate(x[5:])
            ]
        gradient.append([[-value / len(raw) for value in delta] for delta in rows])
    return gradient


@given(st.integers(0, 10**6), st.integers(0, 9), st.sampled_from([0.0, 0.01]))
@settings(max_examples=30)
def test_gradients_are_the_region_layers_deltas(seed: int, count: int, prior: float) -> None:
    s = scene(seed, count)
    raw = s["raw"].clone().requires_grad_()
    losses = losses_of(s, prior, raw)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    (gradient,) = torch.autograd.grad(sum(losses.values()), raw)  # pyright: ignore
    torch.testing.assert_close(gradient, torch.tensor(slow_gradient(s, prior)), rtol=1e-4, atol=1e-5)


def test_losses_are_named_and_half_squares() -> None:
    s = scene(1)
    s["labels"].fill_(-1)
    losses = losses_of(s, 0.0)
    confidence = s["raw"][..., 4].sigmoid()
    assert losses["no_object"].item() == pytest.approx(0.35 * confidence.square().sum().item() / 3, rel=1e-5)
    assert sum(loss.item() for name, loss in losses.items() if name != "no_object") == 0
    assert losses_of(s, 0.5)["prior"] > 0
    halves = losses_of(s, 0.0, s["raw"].half())
    assert all(loss.dtype == torch.float32 for loss in halves.values())


def test_extreme_outputs_stay_finite() -> None:
    s = scene(2)
    raw = (s["raw"] * 1e4).requires_grad_()
    total = sum(losses_of(s, 0.01, raw).values())
    assert isinstance(total, Tensor)
    total.backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


def test_a_known_place() -> None:
    """Figure 3: b = sigmoid(t) + c, and p exp(t)."""
    raw = torch.zeros(1, ROWS * COLUMNS * 3, 8)
    place = (1 * COLUMNS + 2) * 3 + 1  # row 1, column 2, the second anchor
    raw[0, place, :4] = torch.tensor([0.0, math.log(3), math.log(2), 0.0])
    box = ops.decode_places(raw, PLACES)[0, place]
    torch.testing.assert_close(box, torch.tensor([2.5 - 2.5, 1.75 - 0.5, 2.5 + 2.5, 1.75 + 0.5]))


def slow_reorg(x: list[float], w: int, h: int, c: int) -> list[float]:
    """darknet's reorg layer of stride 2: where in the memory of (c, h, w) each output comes from."""
    out, out_c = [0.0] * len(x), c // 4
    for k in range(c):
        for j in range(h):
            for i in range(w):
                offset, c2 = divmod(k, out_c)
                w2, h2 = i * 2 + offset % 2, j * 2 + offset // 2
                out[i + w * (j + h * k)] = x[w2 + w * 2 * (h2 + h * 2 * c2)]
    return out


def test_reorg_is_darknets_or_the_papers() -> None:
    x = torch.arange(2.0 * 8 * 4 * 6).view(2, 8, 4, 6)
    found = ops.reorg(x, adjacent=False)
    assert found.shape == (2, 32, 2, 3)
    for row in range(2):
        assert found[row].flatten().tolist() == slow_reorg(x[row].flatten().tolist(), 6, 4, 8)
    found = ops.reorg(x, adjacent=True)
    assert found.shape == (2, 32, 2, 3)
    for row, column in ((0, 0), (1, 2)):
        cells = x[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert sorted(found[0, :, row, column].tolist()) == sorted(cells.flatten().tolist())


def test_kmeans_finds_clusters_and_never_gets_worse_with_more() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[10.0, 10], [40, 20], [20, 60]])
    sides = (centres.repeat(50, 1) * (1 + 0.05 * torch.randn(150, 2))).clamp(min=1)
    found, mean_iou = ops.iou_kmeans(sides, 3)
    torch.testing.assert_close(found.float(), centres[[0, 1, 2]], rtol=0.03, atol=0.0)
    assert mean_iou == pytest.approx(shape_iou(sides.double(), found).amax(1).mean().item())
    assert mean_iou > 0.9
    again, _ = ops.iou_kmeans(sides, 3)
    assert torch.equal(found, again)
    scores = [ops.iou_kmeans(sides, count)[1] for count in (1, 2, 3, 5, 9)]
    assert scores == sorted(scores)
    # each centroid is the mean of the shapes that are nearest to it
    nearest = shape_iou(sides.double(), found).argmax(1)
    for number, centroid in enumerate(found):
        torch.testing.assert_close(sides[nearest == number].double().mean(0), centroid)
    with pytest.raises(ValueError, match="2 different shapes are too few for 3 centroids"):
        ops.iou_kmeans(torch.tensor([[1.0, 2], [2, 1], [1, 2]]), 3)
