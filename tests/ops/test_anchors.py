import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from detkit import ops
from tests.builders import SSD300, SSD512


def test_numbers_of_default_boxes() -> None:
    assert ops.default_boxes(**SSD300).shape == (8732, 4)
    assert ops.default_boxes(**SSD512).shape == (24564, 4)
    assert ops.default_boxes(**SSD300).dtype == torch.float32


@pytest.mark.parametrize(("recipe", "size"), [(SSD300, 300), (SSD512, 512)])
def test_default_boxes_equal_torchvision(recipe: dict, size: int) -> None:
    scales = [s / size for s in [*recipe["min_sizes"], recipe["max_sizes"][-1]]]
    generator = DefaultBoxGenerator(recipe["aspect_ratios"], scales=scales, steps=recipe["steps"], clip=False)
    images = ImageList(torch.zeros(1, 3, size, size), [(size, size)])
    theirs = generator(images, [torch.zeros(1, 1, *shape) for shape in recipe["maps"]])[0]
    torch.testing.assert_close(ops.default_boxes(**recipe), theirs, rtol=1e-5, atol=1e-3)


def test_order_in_a_cell_and_of_cells() -> None:
    boxes = ops.xyxy_to_cxcywh(ops.default_boxes([(2, 3)], [10], [8], [18], [[4]]))
    assert boxes[::4, :2].tolist() == [[5, 5], [15, 5], [25, 5], [5, 15], [15, 15], [25, 15]]
    torch.testing.assert_close(boxes[:4, 2:], torch.tensor([[8.0, 8], [12, 12], [16, 4], [4, 16]]))
    wide = ops.default_boxes([(1, 1)], [4], [16], [math.nextafter(16, 17)], [[]])
    assert wide[0].tolist() == [-6, -6, 10, 10]  # not clipped


def test_unequal_lists() -> None:
    with pytest.raises(ValueError, match="got 1, 1, 2, 1, 1"):
        ops.default_boxes([(1, 1)], [1], [1, 2], [1], [[]])


def test_the_nine_published_anchors() -> None:
    """1-based inclusive pixels, as the authors print them."""
    published = [
        *([-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200]),
        *([-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264]),
        *([-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360]),
    ]
    expected = torch.tensor(published, dtype=torch.float32) - torch.tensor([1, 1, 0, 0])
    assert torch.equal(ops.rpn_anchors(16, (0.5, 1, 2), (8, 16, 32)), expected)


def test_anchors_over_a_map() -> None:
    cell = ops.rpn_anchors(16, (0.5, 1, 2), (8,))
    grid = ops.grid_anchors(3, 2, 16, cell).view(3, 2, 3, 4)
    for row in range(3):
        for column in range(2):
            assert torch.equal(
                grid[row, column], cell + torch.tensor([16, 16, 16, 16]) * torch.tensor([column, row] * 2)
            )
    assert ops.grid_anchors(0, 2, 16, cell).shape == (0, 4)
