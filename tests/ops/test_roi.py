import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit import ops
from tests.ops.reference import random_boxes

Window = tuple[int, int, int, int]  # first and last column, first and last row


def away(value: float) -> int:
    """C's round: halves away from zero."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def pool_window(features: Tensor, window: Window, bins: int) -> Tensor:
    """The maxima (C, bins, bins) of one window of a map (C, H, W), bin by bin; 0 where a bin meets no cell."""
    left, right, top, bottom = window
    wide, high = max(right - left + 1, 1), max(bottom - top + 1, 1)
    out = features.new_zeros(len(features), bins, bins)
    for i in range(bins):
        rows = range(top + i * high // bins, top - (-(i + 1) * high // bins))
        rows = [row for row in rows if 0 <= row < features.shape[1]]
        for j in range(bins):
            columns = range(left + j * wide // bins, left - (-(j + 1) * wide // bins))
            columns = [column for column in columns if 0 <= column < features.shape[2]]
            if rows and columns:
                out[:, i, j] = features[:, rows][:, :, columns].amax((1, 2))
    return out


def slow_roi_pool(features: Tensor, boxes: Tensor, size: int, stride: float) -> Tensor:
    """Fast R-CNN, section 2.1, with Caffe's rounding."""
    images = []
    for one, rows in zip(features.double(), boxes.double().tolist()):
        windows = [tuple(away(edge / stride) for edge in (x1, x2, y1, y2)) for x1, y1, x2, y2 in rows]
        images.append(torch.stack([pool_window(one, window, size) for window in windows]))
    return torch.stack(images)


def spp_window(box: list[float], cells: tuple[int, int], offset0: float, offset: float, stride: float) -> Window:
    """The authors' formula, in their 1-based pixels and cells; cells: (rows, columns)."""
    low, high = [], []
    for start, end, most in ((box[0], box[2], cells[1]), (box[1], box[3], cells[0])):
        first = math.floor((start + 1 - offset0 + offset) / stride + 0.5) + 1
        last = math.ceil((end - offset0 - offset) / stride - 0.5) + 1
        if first > last:
            first = last = int((first + last) / 2)
        low.append(min(most, max(1, first)) - 1)
        high.append(min(most, max(1, last)) - 1)
    return low[0], high[0], low[1], high[1]


def slow_spp_pool(
    features: Tensor,
    boxes: Tensor,
    levels: tuple[int, ...],
    offset0: float = 21,
    offset: float = 6.5,
    stride: float = 16,
) -> Tensor:
    cells = (features.shape[2], features.shape[3])
    images = []
    for one, rows in zip(features.double(), boxes.double().tolist()):
        windows = [spp_window(row, cells, offset0, offset, stride) for row in rows]
        images.append(torch.stack([torch.cat([pool_window(one, w, n).flatten(1) for n in levels], 1) for w in windows]))
    return torch.stack(images)


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, 6, 7]), st.sampled_from([4, 16]), st.booleans())
@settings(max_examples=40)
def test_roi_pool_equals_the_slow_loop(seed: int, size: int, stride: int, halves: bool) -> None:
    """Also where edges fall halfway between cells, and where boxes leave the map."""
    torch.manual_seed(seed)
    features = torch.randn(2, 3, 9, 13)
    grid = stride / 2 if halves else None
    boxes = random_boxes(2, 12, size=stride * 14, side=stride * 12, grid=grid) - stride * 2
    out = ops.roi_pool(features, boxes, size, stride)
    assert torch.equal(out, slow_roi_pool(features, boxes, size, stride).float())


def test_rounding_takes_halves_away_from_zero() -> None:
    """8 / 16 and 40 / 16: C's round gives 1 and 3, half to even would give 0 and 2; -8 / 16 gives -1, not 0."""
    features = torch.arange(6.0).expand(1, 1, 6, 6)
    boxes = torch.tensor([[[8.0, 0, 40, 0], [-8.0, 0, -8, 0]]])
    assert ops.roi_pool(features, boxes, 1, 16).flatten().tolist() == [3, 0]
    assert ops.roi_pool(-features, boxes, 1, 16).flatten().tolist() == [-1, 0]
    assert ops.roi_pool(features + 1, boxes, 1, 16).flatten().tolist() == [4, 0]  # the second lies outside the map


def slow_roi_align(
    features: Tensor, box: list[float], size: int, stride: float, sampling: int, aligned: bool
) -> Tensor:
    """One image (C, H, W), float64."""
    _, height, width = features.shape
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (edge / stride - shift for edge in box)
    wide, high = x2 - x1, y2 - y1
    if not aligned:
        wide, high = max(wide, 1.0), max(high, 1.0)
    across = sampling or math.ceil(wide / size)
    down = sampling or math.ceil(high / size)
    out = features.new_zeros(len(features), size, size)

    def sample(x: float, y: float) -> Tensor:
        if not (-1 <= x <= width and -1 <= y <= height):
            return features.new_zeros(len(features))
        x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
        left, top = min(int(x), width - 2), min(int(y), height - 2)
        fx, fy = x - left, y - top
        upper = features[:, top, left] * (1 - fx) + features[:, top, left + 1] * fx
        lower = features[:, top + 1, left] * (1 - fx) + features[:, top + 1, left + 1] * fx
        return upper * (1 - fy) + lower * fy

    for i in range(size):
        for j in range(size):
            for k in range(down * across):
                x = x1 + (j + (k % across + 0.5) / across) * wide / size
                y = y1 + (i + (k // across + 0.5) / down) * high / size
                out[:, i, j] += sample(x, y) / max(1, down * across)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [0, 1, 2])
@pytest.mark.parametrize("channels", [3, 8])
def test_roi_align_equals_the_slow_loop(channels: int, sampling: int, aligned: bool, device: torch.device) -> None:
    features = torch.randn(2, channels, 9, 13)
    boxes = random_boxes(2, 6, size=200, side=120) - 20
    out = ops.roi_align(features.to(device), boxes.to(device), 3, 16, sampling, aligned).cpu()
    for image in range(2):
        for row, box in enumerate(boxes[image].double().tolist()):
            expected = slow_roi_align(features[image].double(), box, 3, 16, sampling, aligned)
            torch.testing.assert_close(out[image, row].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [1, 2, 3])
@pytest.mark.parametrize("cells", [(9, 13), (1, 1), (2, 40)])
def test_roi_align_of_many_channels_equals_the_kernel(
    sampling: int, aligned: bool, cells: tuple[int, int], device: torch.device
) -> None:
    """Also of regions that leave the map, by less and by more than a cell, and of those without an area."""
    features = torch.randn(2, 9, *cells, dtype=torch.float64, device=device, requires_grad=True)
    boxes = random_boxes(2, 30, size=600, side=300).double() - 150
    boxes[:, 0, 2:] = boxes[:, 0, :2]
    boxes[:, 1] = torch.tensor([-16.0, -16, 0, 0])  # samples exactly one cell off the map
    boxes[:, 2] = torch.tensor([0.0, 0, 16 * cells[1] + 16, 16 * cells[0] + 16])
    image = torch.arange(2.0).repeat_interleave(30).unsqueeze(1)
    rois = torch.cat((image, boxes.view(-1, 4)), 1).to(features)
    theirs = torchvision.ops.roi_align(features, rois, 5, 1 / 16, sampling, aligned)
    ours = ops.roi_align(features, boxes.to(device), 5, 16, sampling, aligned).flatten(0, 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(theirs)
    (expected,) = torch.autograd.grad((theirs * weights).sum(), features)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), features)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_roi_align_keeps_float32_and_the_layout_within_autocast(layout: torch.memory_format) -> None:
    features = torch.randn(2, 8, 6, 7).to(memory_format=layout).requires_grad_()
    boxes = random_boxes(2, 5)
    (expected,) = torch.autograd.grad(ops.roi_align(features, boxes, 3, 16).square().sum(), features)
    with torch.autocast("cpu", torch.bfloat16):
        (gradient,) = torch.autograd.grad(ops.roi_align(features, boxes, 3, 16).square().sum(), features)
    assert torch.equal(gradient, expected)
    assert gradient.is_contiguous(memory_format=layout)


def test_gradients_of_many_channels_have_gradients() -> None:
    features = torch.randn(1, 8, 5, 6, dtype=torch.float64, requires_grad=True)
    boxes = random_boxes(1, 3, size=60).double()
    assert torch.autograd.gradcheck(lambda f: ops.roi_align(f, boxes, 2, 16), features)
    assert torch.autograd.gradgradcheck(lambda f: ops.roi_align(f, boxes, 2, 16), features)


def test_roi_align_defaults_are_two_samples_aligned() -> None:
    features, boxes = torch.randn(1, 2, 8, 8), random_boxes(1, 5)
    rois = torch.cat((torch.zeros(5, 1), boxes[0]), 1)
    theirs = torchvision.ops.roi_align(features, rois, 7, 1 / 16, 2, True)
    assert torch.equal(ops.roi_align(features, boxes, 7, 16)[0], theirs)


@given(
    st.integers(0, 10**6),
    st.sampled_from([(6, 3, 2, 1), (4, 3, 2, 1), (1,), (2, 5), (3, 6, 3)]),
    st.sampled_from([(21.0, 6.5, 16.0), (8.5, 0.0, 16.0), (1.0, 5.0, 8.0)]),
    st.sampled_from([(9, 13), (1, 1), (2, 31)]),
)
@settings(max_examples=60)
def test_spp_pool_equals_the_slow_loop(seed: int, levels: tuple, geometry: tuple, cells: tuple) -> None:
    """Tiny boxes whose edges cross, boxes outside the map, windows of one cell, and exact halves."""
    torch.manual_seed(seed)
    offset0, offset, stride = geometry
    features = torch.randn(2, 3, *cells)
    boxes = random_boxes(2, 8, size=220, side=[3.0, 40.0, 300.0][seed % 3], grid=[None, 0.5][seed % 2]) - 20
    out = ops.spp_pool(features, boxes, levels, stride, offset0 - 0.5, offset)
    assert out.shape == (2, 8, 3, sum(n * n for n in levels))
    assert torch.equal(out, slow_spp_pool(features, boxes, levels, offset0, offset, stride).float())


def test_spp_pool_defaults_are_the_published_ones(device: torch.device) -> None:
    features, boxes = torch.rand(2, 4, 40, 50), random_boxes(2, 30, size=600, side=500)
    out = ops.spp_pool(features.to(device), boxes.to(device)).cpu()
    assert torch.equal(out, slow_spp_pool(features, boxes, (6, 3, 2, 1)).float())


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5, 6])
def test_spp_bins_are_exact_for_windows_of_any_height(level: int) -> None:
    """The kernel finds bins in float32: over maps of rising numbers each bin's last row and first row are checked."""
    heights = torch.arange(1, 200)
    features = torch.arange(200.0).view(1, 1, 200, 1)
    boxes = torch.stack((heights * 0, heights * 0, heights * 0 + 1, heights), -1).float().unsqueeze(0)
    i = torch.arange(level)
    last = -(-(i + 1) * heights.unsqueeze(1) // level) - 1
    out = ops.spp_pool(features, boxes, (level,), 1, 0.5, 0.0)[0, :, 0].view(-1, level, level)
    assert torch.equal(out[:, :, 0].long(), last)
    first = i * heights.unsqueeze(1) // level
    out = ops.spp_pool(-features, boxes, (level,), 1, 0.5, 0.0)[0, :, 0].view(-1, level, level)
    assert torch.equal(-out[:, :, 0].long(), first)


POOLS = {
    "roi_pool": lambda f, b: ops.roi_pool(f, b, 3, 16),
    "roi_align": lambda f, b: ops.roi_align(f, b, 3, 16),
    "roi_align of many channels": lambda f, b: ops.roi_align(f.repeat(1, 4, 1, 1), b, 3, 16)[..., : f.shape[1], :, :],
    "spp_pool": lambda f, b: ops.spp_pool(f, b),
}
pools = pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())


@pools
def test_gradients_reach_the_features(pool: Callable) -> None:
    features = torch.randperm(2 * 2 * 5 * 6).view(2, 2, 5, 6).double().requires_grad_()
    boxes = random_boxes(2, 4, size=50, side=60).double()
    assert torch.autograd.gradcheck(lambda f: pool(f, boxes), features, eps=1e-4)


@pools
def test_boxes_may_name_their_images(pool: Callable, device: torch.device) -> None:
    """Any number of each image, in any order; images without boxes have no gradient."""
    features = torch.rand(3, 2, 6, 7, device=device, requires_grad=True)
    boxes = random_boxes(3, 4).to(device)
    expected = pool(features, boxes)
    image, row = torch.tensor([2, 0, 2, 2, 0], device=device), torch.tensor([1, 3, 0, 1, 2], device=device)
    out = pool(features, torch.cat((image.unsqueeze(1), boxes[image, row]), 1))
    assert torch.equal(out, expected[image, row])
    (gradient,) = torch.autograd.grad(out.sum(), features)
    assert [bool(part.any()) for part in gradient] == [True, False, True]
    assert pool(features, boxes.new_zeros(0, 5)).shape == (0, *out.shape[1:])


@pools
@pytest.mark.parametrize(("batch", "count"), [(0, 4), (2, 0), (0, 0)])
def test_nothing_to_pool(pool: Callable, batch: int, count: int) -> None:
    features = torch.rand(batch, 3, 6, 7, requires_grad=True)
    out = pool(features, random_boxes(batch, count))
    assert out.shape[:3] == (batch, count, 3)
    (gradient,) = torch.autograd.grad(out.sum(), features)
    assert torch.equal(gradient, torch.zeros_like(features))


@pools
def test_each_image_has_its_own_map_and_halves_become_floats(pool: Callable, device: torch.device) -> None:
    features, boxes = torch.rand(3, 2, 6, 7, device=device), random_boxes(3, 4).to(device)
    out = pool(features, boxes)
    for i in range(3):
        assert torch.equal(pool(features[i : i + 1], boxes[i : i + 1])[0], out[i])
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(pool(features, boxes), out)
    half = features.bfloat16()
    assert torch.equal(pool(half, boxes), pool(half.float(), boxes))
    assert pool(half, boxes).dtype == torch.float32


def test_wrong_arguments() -> None:
    features, boxes = torch.rand(2, 3, 6, 7), random_boxes(2, 4)
    with pytest.raises(ValueError, match=r"expected boxes \(2, R, 4\)"):
        ops.roi_pool(features, boxes[:1], 7, 16)
    with pytest.raises(ValueError, match="levels must be from 1 to 6"):
        ops.spp_pool(features, boxes, (7, 1))
