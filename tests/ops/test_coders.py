import math

import pytest
import torch
from torchvision.models.detection import _utils

from detkit import ops
from tests.ops.reference import random_boxes

WEIGHTS = [(10.0, 10.0, 5.0, 5.0), (1.0, 1.0, 1.0, 1.0)]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_coder_equals_torchvision(weights: tuple, device: torch.device) -> None:
    boxes, refs = (random_boxes(80).to(device) + torch.tensor([0.0, 0, 1, 1], device=device) for _ in range(2))
    deltas = torch.randn(80, 4, device=device) * 3
    theirs, mine = _utils.BoxCoder(weights), ops.BoxCoder(weights)
    torch.testing.assert_close(mine.encode(boxes, refs), theirs.encode_single(boxes, refs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.decode(deltas, refs), theirs.decode_single(deltas, refs), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_undoes_encode_with_any_leading_dimensions(weights: tuple) -> None:
    boxes, refs = random_boxes(2, 3, 40) + torch.tensor([0.0, 0, 2, 2]), random_boxes(40) + torch.tensor([0.0, 0, 2, 2])
    coder = ops.BoxCoder(weights)
    deltas = coder.encode(boxes, refs)
    assert deltas.shape == boxes.shape
    torch.testing.assert_close(coder.decode(deltas, refs), boxes, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(deltas[1, 2], coder.encode(boxes[1, 2], refs))


def test_known_deltas() -> None:
    coder = ops.BoxCoder((10, 10, 5, 5))
    ref, box = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 0, 25, 20]])
    wanted = torch.tensor([[10.0, 0, 5 * math.log(2), 0]])
    torch.testing.assert_close(coder.encode(box, ref), wanted)
    torch.testing.assert_close(coder.decode(wanted, ref), box)
    assert torch.equal(coder.decode(torch.zeros(1, 4), ref), ref)


def test_growth_is_cut_and_everything_stays_finite() -> None:
    coder = ops.BoxCoder((1, 1, 1, 1))
    ref = torch.tensor([[0.0, 0, 16, 16]])
    grown = coder.decode(torch.tensor([[0.0, 0, 1e4, 1e4]]), ref)
    torch.testing.assert_close(grown, torch.tensor([[-492.0, -492, 508, 508]]))  # 1000 pixels around the centre
    assert coder.decode(torch.tensor([[0.0, 0, -1e4, -1e4]]), ref).tolist() == [[8, 8, 8, 8]]
    odd = torch.tensor([[0.0, 0, 0, 0], [5, 5, 5, 9], [9, 9, 1, 1], [0, 0, 1e6, 1e6]])
    assert coder.encode(odd.unsqueeze(1), odd).isfinite().all()
    assert coder.decode(torch.randn(4, 4) * 100, odd).isfinite().all()


def test_halves_are_coded_in_float32_and_empties_pass() -> None:
    coder, refs = ops.BoxCoder(), random_boxes(5)
    assert coder.decode(torch.randn(5, 4).half(), refs).dtype == torch.float32
    assert coder.encode(refs.half(), refs).dtype == torch.float32
    assert coder.encode(torch.zeros(2, 0, 4), torch.zeros(0, 4)).shape == (2, 0, 4)


def test_gradient_flows_through_decode() -> None:
    deltas = torch.zeros(3, 4, requires_grad=True)
    ops.BoxCoder().decode(deltas, random_boxes(3) + torch.tensor([0.0, 0, 1, 1])).sum().backward()
    assert deltas.grad is not None
    assert (deltas.grad[:, :2] > 0).all()


def test_wrong_number_of_weights() -> None:
    with pytest.raises(ValueError, match="expected 4 numbers, got 3"):
        ops.BoxCoder((1, 1, 1))
