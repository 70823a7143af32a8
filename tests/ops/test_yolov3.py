"""YOLOv3's places and loss, against a float64 loop written from the formulas of darknet's yolo layer; letterboxes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit import ops
from tests.ops import reference

SIDE, CLASSES = 64, 3  # of the input, pixels
ANCHORS = torch.tensor([[6.0, 9.0], [14.0, 7.0], [18.0, 20.0], [25.0, 40.0], [44.0, 30.0], [60.0, 58.0]])
CELLS = (2, 4)  # a side of each map
SHARED = ((3, 4, 5), (0, 1, 2))
OVERLAPPING = ((3, 4, 5), (1, 2, 3))  # of the first yolov3-tiny.cfg: one anchor on both maps, one on none


def places_of(masks: tuple[tuple[int, ...], ...]) -> ops.Places:
    maps = []
    for side, mask in zip(CELLS, masks):
        slots = torch.tensor([mask.index(number) if number in mask else -1 for number in range(len(ANCHORS))])
        maps.append(ops.AnchorMap(side, side, (SIDE / side, SIDE / side), ANCHORS[list(mask)], slots))
    return ops.lay_places(maps)


def scene(seed: int, count: int = 4, batch: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    labels = torch.where(torch.rand(batch, count) < 0.8, torch.randint(CLASSES, (batch, count)), -1)
    centre = torch.rand(batch, count, 2) * SIDE
    sides = ANCHORS[torch.randint(len(ANCHORS), (batch, count))] * (0.7 + 0.6 * torch.rand(batch, count, 2))
    if count > 2:  # two objects of one place
        centre[:, 1], sides[:, 1] = centre[:, 0], sides[:, 0]
    return {
        "raw": torch.randn(batch, sum(side**2 * 3 for side in CELLS), 5 + CLASSES),
        "boxes": torch.cat((centre - sides / 2, centre + sides / 2), -1) * (labels >= 0).unsqueeze(-1),
        "labels": labels,
        "ignore": torch.rand(batch, count) < 0.2,
        "priority": torch.rand(batch, count),
    }


def match_of(s: dict[str, Tensor], places: ops.Places, raw: Tensor) -> ops.PlaceMatch:
    objects = (s["boxes"], s["labels"] >= 0, s["ignore"])
    return ops.assign_places(ops.decode_places(raw, places), *objects, ANCHORS, places, s["priority"])


def losses_of(
    s: dict[str, Tensor], masks: tuple[tuple[int, ...], ...] = SHARED, raw: Tensor | None = None
) -> dict[str, Tensor]:
    raw, places = s["raw"] if raw is None else raw, places_of(masks)
    return ops.yolov3_loss(raw, match_of(s, places, raw), s["boxes"], s["labels"], places, ignore_iou=0.4)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_gradient(s: dict[str, Tensor], masks: tuple[tuple[int, ...], ...]) -> Tensor:
    """What the deltas of the yolo layers are, negative since darknet descends by them: layer by layer and image by
    image, first every place against all objects, then object by object. Boxes as shares of the input; ignore_thresh .4.
    """
    gradient = torch.zeros_like(s["raw"], dtype=torch.float64)
    anchors = ANCHORS.double().tolist()
    for b in range(len(s["raw"])):
        objects = [n for n in range(s["labels"].shape[1]) if s["labels"][b, n] >= 0]
        truth = {n: [side / SIDE for side in s["boxes"][b, n].double().tolist()] for n in objects}
        first = 0
        for side, mask in zip(CELLS, masks):

            def index_of(row: int, column: int, slot: int, side: int = side, first: int = first) -> int:
                return first + (row * side + column) * 3 + slot

            classes_set = set()
            for row in range(side):
                for column in range(side):
                    for slot, number in enumerate(mask):
                        place = index_of(row, column, slot)
                        x = s["raw"][b, place].double().tolist()
                        cx, cy = (column + sigmoid(x[0])) / side, (row + sigmoid(x[1])) / side
                        w, h = (math.exp(v) * a / SIDE for v, a in zip(x[2:4], anchors[number]))
                        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
                        best = max((reference.iou(box, truth[n]) for n in objects), default=0.0)
                        gradient[b, place, 4] = 0 if best > 0.4 else 0 - sigmoid(x[4])
            # the last of a place counts; those that are not trained on come first, and leave the objectness alone
            order = sorted(objects, key=lambda n: (not s["ignore"][b, n], s["priority"][b, n].item()))
            for n in order:
                x1, y1, x2, y2 = truth[n]
                cx, cy, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
                shapes = [reference.iou([0, 0, w, h], [0, 0, a / SIDE, c / SIDE]) for a, c in anchors]
                number = shapes.index(max(shapes))
                if number not in mask:
                    continue
                column, row = min(int(cx * side), side - 1), min(int(cy * side), side - 1)
                place = index_of(row, column, mask.index(number))
                x, delta = s["raw"][b, place].double().tolist(), gradient[b, place]
                if s["ignore"][b, n]:
                    delta[4] = 0.0
                    continue
                scale = 2 - w * h
                delta[0] = scale * (cx * side - column - sigmoid(x[0]))
                delta[1] = scale * (cy * side - row - sigmoid(x[1]))
                delta[2] = scale * (math.log(w * SIDE / anchors[number][0]) - x[2])
                delta[3] = scale * (math.log(h * SIDE / anchors[number][1]) - x[3])
                delta[4] = 1 - sigmoid(x[4])
                label = int(s["labels"][b, n])
                if place in classes_set:  # another object's: its class is learned, too
                    delta[5 + label] = 1 - sigmoid(x[5 + label])
                    continue
                classes_set.add(place)
                for c in range(CLASSES):
                    delta[5 + c] = (c == label) - sigmoid(x[5 + c])
            first += side * side * 3
    return -gradient / len(s["raw"])


@given(st.integers(0, 10**6), st.integers(0, 9), st.sampled_from([SHARED, OVERLAPPING]))
@settings(max_examples=30)
def test_gradients_are_the_yolo_layers_deltas(seed: int, count: int, masks: tuple[tuple[int, ...], ...]) -> None:
    s = scene(seed, count)
    raw = s["raw"].clone().requires_grad_()
    losses = losses_of(s, masks, raw)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    (gradient,) = torch.autograd.grad(sum(losses.values()), raw)  # pyright: ignore
    torch.testing.assert_close(gradient.double(), slow_gradient(s, masks), rtol=1e-4, atol=1e-5)


def test_the_scene_has_what_it_should() -> None:
    """Places of two objects, ignored ones, boxes above the threshold, objects without a map."""
    s, places = scene(0, 6, 40), places_of(OVERLAPPING)
    match = match_of(s, places, s["raw"])
    trained = (s["labels"] >= 0) & ~s["ignore"]
    assert ((match.place >= 0).sum(1) == 2).any()
    assert (((match.place >= 0).sum(1) == 0) & trained).any()
    assert (match.index == ops.IGNORED).any()
    assert (match.iou > 0.4).any()
    assert (match.index >= 0).sum() < (match.place >= 0).sum()


def test_losses_are_named() -> None:
    s = scene(1)
    s["labels"].fill_(-1)
    losses = losses_of(s)
    expected = torch.nn.functional.softplus(s["raw"][..., 4]).sum().item() / 3
    assert losses["no_object"].item() == pytest.approx(expected, rel=1e-5)
    assert sum(loss.item() for name, loss in losses.items() if name != "no_object") == 0
    halves = losses_of(s, raw=s["raw"].half())
    assert all(loss.dtype == torch.float32 for loss in halves.values())


def test_extreme_outputs_stay_finite() -> None:
    s = scene(2)
    raw = (s["raw"] * 1e4).requires_grad_()
    total = sum(losses_of(s, raw=raw).values())
    assert isinstance(total, Tensor)
    total.backward()
    assert raw.grad is not None
    assert raw.grad.isfinite().all()


def test_places_are_map_after_map() -> None:
    places = places_of(SHARED)
    raw = torch.zeros(1, len(places.anchor), 8)
    boxes = ops.decode_places(raw, places)[0]
    # row 1, column 0 of 2 x 2, the second anchor; row 2, column 3 of 4 x 4, the third
    for place, centre, anchor in (((1 * 2 + 0) * 3 + 1, (16, 48), 4), (12 + (2 * 4 + 3) * 3 + 2, (56, 40), 2)):
        half = ANCHORS[anchor] / 2
        torch.testing.assert_close(boxes[place], torch.cat((torch.tensor(centre) - half, torch.tensor(centre) + half)))


def test_a_letterbox_moves_images_to_the_middle_or_anywhere() -> None:
    pixels = torch.rand(3, 2, 6, 7)
    sizes = torch.tensor([[6, 7], [4, 7], [3, 2]])
    grey = torch.tensor([0.25, 0.5]).view(2, 1, 1)
    for share, expected in ((None, [[1, 0], [2, 0], [2, 3]]), (torch.tensor([0.7, 0.5]).expand(3, 2), [[1, 0]])):
        canvas, offset = ops.letterbox(pixels, sizes, 8, grey, share)
        assert canvas.shape == (3, 2, 8, 8)
        assert offset.tolist()[: len(expected)] == expected
        for row, ((down, right), (height, width)) in enumerate(zip(offset.tolist(), sizes.tolist())):
            whole = grey.expand(2, 8, 8).clone()
            whole[:, down : down + height, right : right + width] = pixels[row, :, :height, :width]
            assert torch.equal(canvas[row], whole)
