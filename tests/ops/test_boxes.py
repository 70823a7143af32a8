import itertools
import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit import ops
from detkit.ops import boxes as module
from tests.ops.reference import iou_matrix, random_boxes


def test_box_iou_equals_torchvision_and_the_loop(device: torch.device) -> None:
    a, b = random_boxes(60).to(device), random_boxes(70).to(device)
    mine = ops.box_iou(a, b)
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, torchvision.ops.box_iou(a, b), rtol=1e-6, atol=0)
    torch.testing.assert_close(mine.double().cpu(), iou_matrix(a.cpu(), b.cpu()), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("left", "right"),
    [((), ()), ((3,), ()), ((), (3,)), ((3,), (3,)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((0,), (0,)), ((0,), ())],
)
@pytest.mark.parametrize(("m", "n"), [(5, 7), (1, 1), (0, 7), (5, 0), (0, 0)])
@pytest.mark.parametrize("pairs", [1 << 17, 13, 1])
def test_box_iou_broadcasts_in_pieces_of_any_size(
    left: tuple, right: tuple, m: int, n: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = random_boxes(*left, m), random_boxes(*right, n)
    lead = torch.broadcast_shapes(left, right)
    monkeypatch.setattr(module, "CPU_PAIRS", pairs)
    mine = ops.box_iou(a, b)
    assert mine.shape == (*lead, m, n)
    for index in itertools.product(*map(range, lead)):
        torch.testing.assert_close(
            mine[index], torchvision.ops.box_iou(a.expand(*lead, m, 4)[index], b.expand(*lead, n, 4)[index])
        )


def test_boxes_without_area_overlap_nothing(device: torch.device) -> None:
    odd = torch.tensor([[5.0, 5, 5, 5], [0, 0, 0, 9], [9, 9, 1, 1], [9, 1, 1, 9], [0, 0, 1e-30, 1e-30]], device=device)
    whole = torch.tensor([[0.0, 0, 10, 10]], device=device)
    every = torch.cat((odd, whole))
    wanted = torch.zeros(6, 6, device=device)
    wanted[5, 5] = 1
    assert torch.equal(ops.box_iou(every, every), wanted)
    assert torch.equal(ops.area(every), torch.tensor([0.0, 0, 0, 0, 0, 100], device=device))


def test_touching_tiny_and_huge_boxes() -> None:
    touching = ops.box_iou(torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([[5.0, 0, 9, 5], [0, 5, 5, 9]]))
    assert torch.equal(touching, torch.zeros(1, 2))
    sizes = torch.tensor([1e-6, 1.0, 1e6, 1e9])
    same = torch.stack((torch.zeros(4), torch.zeros(4), sizes, sizes), -1)
    assert torch.equal(ops.box_iou(same, same).diagonal(), torch.ones(4))


@given(st.lists(st.lists(st.integers(0, 20), min_size=4, max_size=4), min_size=1, max_size=8))
def test_iou_is_symmetric_bounded_and_one_on_itself(numbers: list[list[int]]) -> None:
    boxes = torch.tensor(numbers).float()
    overlap = ops.box_iou(boxes, boxes)
    assert torch.equal(overlap, overlap.T)
    assert ((overlap >= 0) & (overlap <= 1)).all()
    assert torch.equal(overlap.diagonal() == 1, ops.area(boxes) > 0)


def test_autocast_and_halves_give_float32(device: torch.device) -> None:
    a, b = random_boxes(9, size=3000).to(device), random_boxes(8, size=3000).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(ops.box_iou(a, b), ops.box_iou(a, b).float())
        assert ops.cxcywh_to_xyxy(ops.xyxy_to_cxcywh(a)).dtype == torch.float32
    assert torch.equal(ops.box_iou(a.half(), b.half()), ops.box_iou(a.half().float(), b.half().float()))
    assert ops.box_iou(a.double(), b.double()).dtype == torch.float64
    assert torch.equal(ops.box_iou(a[:1] * 0, b.double() * 0), torch.zeros(1, 8, dtype=torch.float64, device=device))


def test_conversions_round_trip_and_equal_torchvision() -> None:
    boxes = random_boxes(2, 50)
    there = ops.xyxy_to_cxcywh(boxes)
    torch.testing.assert_close(there, torchvision.ops.box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(ops.cxcywh_to_xyxy(there), boxes)


def test_clip_and_scale_use_each_images_own_size() -> None:
    boxes = torch.tensor([[[-5.0, -5, 50, 50]], [[10, 10, 500, 500]]])
    sizes = torch.tensor([[30, 40], [300, 200]])  # height, width
    assert ops.clip(boxes, sizes).tolist() == [[[0, 0, 40, 30]], [[10, 10, 200, 300]]]
    assert ops.scale(boxes, torch.tensor([[2.0, 3.0], [1.0, 0.5]])).tolist() == [
        [[-15, -10, 150, 100]],
        [[5, 10, 250, 500]],
    ]
    per_class = boxes.unsqueeze(2).expand(-1, -1, 3, -1)
    assert torch.equal(ops.clip(per_class, sizes), ops.clip(boxes, sizes).unsqueeze(2).expand(-1, -1, 3, -1))
    assert torch.equal(ops.clip(boxes[0], sizes[0]), ops.clip(boxes, sizes)[0])
    assert ops.clip(torch.tensor([[900.0, 900, 950, 950]]), sizes[0]).tolist() == [[40, 30, 40, 30]]


def test_flip_mirrors_and_is_its_own_inverse() -> None:
    assert ops.flip(torch.tensor([[1.0, 2, 3, 4]]), 10).tolist() == [[7, 2, 9, 4]]
    boxes, widths = random_boxes(3, 5), torch.tensor([100, 150, 200])
    torch.testing.assert_close(ops.flip(ops.flip(boxes, widths), widths), boxes)
    torch.testing.assert_close(ops.flip(boxes, widths)[1], ops.flip(boxes[1], 150.0))


def test_infinite_coordinates_do_not_spread() -> None:
    boxes = torch.tensor([[0.0, 0, math.inf, 5], [0, 0, 5, 5], [0, 0, 10, 5]])
    assert ops.box_iou(boxes, boxes)[1:, 1:].tolist() == [[1, 0.5], [0.5, 1]]


@given(seed=st.integers(0, 2**32 - 1), transposed=st.booleans())
@settings(deadline=None)
def test_paired_iou_is_the_diagonal_of_box_iou(seed: int, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randint(
        0, 12, (2, 40, 4), generator=generator
    ).double()  # boxes without area and inside out among them
    rows = (a.T.contiguous().T, b.T.contiguous().T) if transposed else (a, b)
    assert torch.equal(ops.paired_iou(*rows), ops.box_iou(a, b).diagonal())


def test_paired_iou_of_crowds_and_of_given_areas() -> None:
    a, b = torch.tensor([[0.0, 0, 4, 4]] * 2), torch.tensor([[2.0, 0, 10, 4]] * 2)
    crowd = torch.tensor([True, False])
    assert ops.paired_iou(a, b, crowd=crowd).tolist() == [0.5, pytest.approx(8 / 40)]
    areas = torch.tensor([20.0, 16]), torch.tensor([32.0, 12])
    assert ops.paired_iou(a, b, crowd=crowd, areas=areas).tolist() == [pytest.approx(8 / 20), pytest.approx(8 / 20)]
