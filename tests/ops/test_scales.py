import itertools

import pytest
import torch

from detkit import ops
from tests.ops.reference import random_boxes


def test_short_side_is_reached_unless_the_long_one_would_pass() -> None:
    sizes = torch.tensor([[375, 500], [500, 375], [100, 1000], [600, 1000], [600, 600], [1200, 1201]])
    factors = ops.short_side_scale(sizes, 600, 1000)
    assert factors.dtype == torch.float32
    for (height, width), factor in zip(sizes.tolist(), factors.tolist()):
        short, long = min(height, width) * factor, max(height, width) * factor
        assert short <= 600.001
        assert long <= 1000.001
        assert short == pytest.approx(600) or long == pytest.approx(1000)
    assert ops.short_side_scale(sizes[:0], 600, 1000).shape == (0,)


def test_sppnet_takes_the_scale_of_the_closest_area(device: torch.device) -> None:
    shorts = (480, 576, 688, 864, 1200)
    boxes, sizes = random_boxes(3, 40, size=300, side=250), torch.tensor([[375, 500], [500, 333], [600, 600]])
    index = ops.sppnet_scale(boxes.to(device), sizes, shorts)
    assert index.dtype == torch.int64
    seen = set()
    for image, row in itertools.product(range(3), range(40)):
        x1, y1, x2, y2 = boxes[image, row].double().tolist()
        factors = [short / min(sizes[image].tolist()) for short in shorts]
        distance = [abs((x2 - x1) * f * (y2 - y1) * f - 224**2) for f in factors]
        assert distance[int(index[image, row])] == pytest.approx(min(distance), rel=1e-5, abs=0.1)
        seen.add(int(index[image, row]))
    assert seen == set(range(5))


def test_sppnet_by_hand_ties_and_nothing() -> None:
    box = torch.tensor([[[0.0, 0, 112, 112], [0, 0, 56, 224], [5, 5, 5, 9], [0, 0, 4000, 4000]]])
    size = torch.tensor([[400, 500]])
    assert ops.sppnet_scale(box, size, (400, 800, 1600)).tolist() == [[1, 1, 0, 0]]
    assert ops.sppnet_scale(box, size, (800, 800)).tolist() == [[0, 0, 0, 0]]
    assert ops.sppnet_scale(box[:, :, :] / 2, size, (400, 800, 1600), target=112).tolist() == [[1, 1, 0, 0]]
    assert ops.sppnet_scale(box[:, :0], size, (480,)).shape == (1, 0)
    assert ops.sppnet_scale(box[:0], size[:0], (480,)).shape == (0, 4)


@pytest.mark.parametrize("factor", [0.37, 0.5, 1.0, 1.7, 3.0])
def test_rescale_is_interpolate(factor: float, device: torch.device) -> None:
    """Of one image it is torch's; in a padded batch with other factors it stays what it was, and the rest is 0."""
    pixels = torch.rand(2, 3, 40, 60)
    sizes, factors = torch.tensor([[40, 60], [31, 23]]), torch.tensor([factor, 0.8])
    out = ops.rescale(pixels.to(device), sizes.to(device), factors.to(device))[0].cpu()
    for image, (size, own) in enumerate(zip(sizes.tolist(), factors.tolist())):
        part = pixels[image : image + 1, :, : size[0], : size[1]]
        height, width = (round(side * own) for side in size)
        whole = torch.nn.functional.interpolate(part, scale_factor=own, mode="bilinear", recompute_scale_factor=False)
        seen = out[image, :, :height, :width]
        rows, columns = (min(a, b) for a, b in zip(seen.shape[1:], whole.shape[2:]))
        torch.testing.assert_close(seen[:, :rows, :columns], whole[0, :, :rows, :columns], atol=1e-4, rtol=1e-4)
        assert not out[image, :, height:].any()
        assert not out[image, :, :, width:].any()
    assert out.shape[2] == max(round(40 * factor), round(31 * 0.8))
