"""Masks packed, cut to regions and pasted: torchvision's functions, one mask at a time, are the oracle."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from detkit.ops import mask_targets, pack_masks, paste_masks, unpack_masks


def pasted_one_by_one(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """torchvision's: masks (N, 1, M, M) -> (N, H, W)."""
    return paste_masks_in_image(masks, boxes, size)[:, 0] if len(masks) else masks.new_zeros(0, *size)


@pytest.mark.parametrize("size", [(60, 80), (241, 320), (5, 7), (1, 1)])
@pytest.mark.parametrize("side", [28, 6])
def test_pasting_equals_torchvision(size: tuple[int, int], side: int) -> None:
    random = torch.Generator().manual_seed(side)
    masks = torch.rand(40, side, side, generator=random)
    limit = torch.tensor([size[1], size[0]])
    low = torch.rand(40, 2, generator=random) * limit * 0.9
    boxes = torch.cat((low, (low + torch.rand(40, 2, generator=random) * limit).minimum(limit)), 1)
    boxes[0] = torch.tensor([0, 0, size[1], size[0]])
    boxes[1, 2:] = boxes[1, :2]  # without any area
    expected = pasted_one_by_one(masks.unsqueeze(1), boxes, size)
    found = paste_masks(masks, boxes, size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    near_threshold = (expected - 0.5).abs() < 1e-5
    assert torch.equal((found > 0.5)[~near_threshold], (expected > 0.5)[~near_threshold])
    assert near_threshold.float().mean() < 1e-3
    assert paste_masks(masks[:0], boxes[:0], size).shape == (0, *size)


def test_packed_masks_are_unpacked_and_continued_by_a_pixel() -> None:
    masks = (np.random.default_rng(0).random((3, 9, 15)) < 0.5).astype(np.uint8)
    packed = torch.from_numpy(pack_masks(masks))
    assert packed.shape == (3, 10, 2)
    assert np.array_equal(unpack_masks(packed), np.pad(masks, ((0, 0), (0, 1), (0, 1)), "edge"))


def test_targets_equal_torchvision() -> None:
    """Of a batch, padded to the larger image, with regions up to the edge of each."""
    random = np.random.default_rng(1)
    sizes, counts = ((50, 70), (33, 41)), (3, 2)
    masks = [(random.random((n, *size)) < 0.5).astype(np.uint8) for n, size in zip(counts, sizes)]
    packed = torch.zeros(2, 3, 51, 9, dtype=torch.uint8)
    for row, mask in enumerate(masks):
        one = torch.from_numpy(pack_masks(mask))
        packed[row, : one.shape[0], : one.shape[1], : one.shape[2]] = one
    low = torch.from_numpy(random.random((2, 12, 2))) * 0.8
    high = (low + torch.from_numpy(random.random((2, 12, 2)))).clamp(max=1)
    boxes = (torch.cat((low, high), -1) * torch.tensor([[70, 50] * 2, [41, 33] * 2]).unsqueeze(1)).float()
    index = torch.from_numpy(np.stack([random.integers(0, n, 12) for n in counts]))
    found = mask_targets(packed, boxes, index, 28)
    for row in range(2):
        expected = project_masks_on_boxes(torch.from_numpy(masks[row]), boxes[row], index[row], 28)
        torch.testing.assert_close(found[row], expected)
    assert 0.1 < found.std() < 0.6
