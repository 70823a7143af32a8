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
