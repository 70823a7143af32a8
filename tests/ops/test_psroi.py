"""Position-sensitive RoI pooling."""

import math

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit.ops import psroi_pool

STRIDE = 4.0


def slow(features: Tensor, boxes: Tensor, size: int) -> Tensor:
    """One number at a time."""
    batch, channels, rows, columns = features.shape
    pooled = features.new_zeros(*boxes.shape[:2], channels // size**2, size, size)
    for image in range(batch):
        for number, box in enumerate(boxes[image].tolist()):
            ends = [min(max(value / STRIDE, 0), limit) for value, limit in zip(box, (columns, rows) * 2)]
            x1, y1, x2, y2 = (math.floor(value + 0.5) for value in ends)
            high, wide = max(y2 - y1, 1), max(x2 - x1, 1)
            for channel in range(channels // size**2):
                for i in range(size):
                    for j in range(size):
                        inside = [
                            float(features[image, (channel * size + i) * size + j, y, x])
                            for y in range(y1 + i * high // size, y1 + -(-(i + 1) * high // size))
                            for x in range(x1 + j * wide // size, x1 + -(-(j + 1) * wide // size))
                            if 0 <= y < rows and 0 <= x < columns
                        ]
                        pooled[image, number, channel, i, j] = sum(inside) / len(inside) if inside else 0
    return pooled


def boxes_of(seed: int, batch: int, count: int, extent: float) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(batch, count, 2, generator=random) * 1.3 * extent - 0.2 * extent
    return torch.cat((low, low + torch.rand(batch, count, 2, generator=random) * extent), -1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([1, 2, 3, 7]), batch=st.integers(1, 2))
def test_it_equals_loops(seed: int, size: int, batch: int) -> None:
    features = torch.randn(batch, 2 * size**2, 6, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    boxes = boxes_of(seed, batch, 3, 8 * STRIDE)
    torch.testing.assert_close(psroi_pool(features, boxes, size, STRIDE), slow(features, boxes, size))


def test_the_last_row_and_column_count() -> None:
    """torchvision's kernel never reads them."""
    features = torch.zeros(1, 1, 4, 4)
    features[..., -1] = 1
    box = torch.tensor([[[0.0, 0.0, 16.0, 16.0]]])
    assert float(psroi_pool(features, box, 1, STRIDE)) == 0.25
    rois = torch.cat((torch.zeros(1, 1), box[0]), 1)
    assert float(torchvision.ops.ps_roi_pool(features, rois, 1, 1 / STRIDE)) == 0


def test_values_and_gradients_are_torchvisions_inside_the_map() -> None:
    features = torch.randn(2, 5 * 9, 12, 14, requires_grad=True)
    boxes = boxes_of(3, 2, 20, 10 * STRIDE).clamp(0, 10 * STRIDE)
    image = torch.arange(2.0).view(2, 1, 1).expand(2, 20, 1)
    rois = torch.cat((image, boxes), -1).view(-1, 5)
    expected = torchvision.ops.ps_roi_pool(features, rois, 3, 1 / STRIDE).view(2, 20, 5, 3, 3)
    found = psroi_pool(features, boxes, 3, STRIDE)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(psroi_pool(features, rois, 3, STRIDE), expected.flatten(0, 1))
    weight = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((x * weight).sum(), features)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs)
    assert ours.abs().sum() > 0


def test_gradients_by_differences() -> None:
    features = torch.randn(1, 8, 5, 6, dtype=torch.float64, requires_grad=True)
    boxes = boxes_of(1, 1, 4, 20)
    assert torch.autograd.gradcheck(lambda x: psroi_pool(x, boxes, 2, STRIDE), features)


def test_nothing_to_pool_and_half_precision() -> None:
    features = torch.randn(2, 8, 5, 6)
    assert psroi_pool(features, torch.zeros(2, 0, 4), 2, STRIDE).shape == (2, 0, 2, 2, 2)
    assert psroi_pool(features[:0], torch.zeros(0, 3, 4), 2, STRIDE).shape == (0, 3, 2, 2, 2)
    assert psroi_pool(features.half(), boxes_of(0, 2, 3, 20), 2, STRIDE).dtype == torch.float32
    with pytest.raises(ValueError, match="one row of boxes an image"):
        psroi_pool(features, torch.zeros(1, 3, 4), 2, STRIDE)
