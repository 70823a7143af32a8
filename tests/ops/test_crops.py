import math
import sys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit import ops
from tests.ops.reference import random_boxes

module = sys.modules["detkit.ops.crops"]
FILL = (10.0, 20.0, 30.0)
TOLERANCE = 0.05  # grey levels of 255: float32 coordinates are good to 1e-4 pixels
CLOSE = {"rtol": 0, "atol": TOLERANCE}


def away(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def slow_crop(image: np.ndarray, box: list[float], size: int, context: int) -> np.ndarray:
    """One image (H, W, 3) float32, in the 1-based inclusive pixels of R-CNN's description."""
    out = np.tile(np.array(FILL, np.float32), (size, size, 1))
    axes = []
    for start, end, length in ((box[1], box[3], image.shape[0]), (box[0], box[2], image.shape[1])):
        first, last = start + 1, end
        half = (last - first + 1) / 2 * size / (size - 2 * context)
        centre = first + (last - first + 1) / 2
        first, last = away(centre - half), away(centre + half)
        ratio = size / (last - first + 1)
        pad = max(0, 1 - first)
        seen_first, seen_last = max(1, first), min(length, last)
        pixels = away(max(0, seen_last - seen_first + 1) * ratio)
        pad = away(pad * ratio)
        axes.append((seen_first - 1, seen_last, pad, min(pixels, size - pad)))
    (top, bottom, down, high), (left, right, across, wide) = axes
    if high > 0 and wide > 0:
        window = np.ascontiguousarray(image[top:bottom, left:right])
        out[down : down + high, across : across + wide] = cv2.resize(
            window, (wide, high), interpolation=cv2.INTER_LINEAR
        )
    return out


def slow_crops(images: Tensor, boxes: Tensor, size: int, context: int, sizes: Tensor | None = None) -> Tensor:
    rows = []
    for i, image in enumerate(images.float()):
        height, width = image.shape[1:] if sizes is None else sizes[i].tolist()
        pixels = np.ascontiguousarray(image[:, :height, :width].permute(1, 2, 0).numpy())
        crops = [slow_crop(pixels, box, size, context) for box in boxes[i].double().tolist()]
        rows.append(torch.stack([torch.from_numpy(crop) for crop in crops]).permute(0, 3, 1, 2))
    return torch.stack(rows)


@given(st.integers(0, 10**6), st.sampled_from([(24, 0), (31, 4), (65, 5)]), st.sampled_from([2.0, 30.0, 150.0]))
@settings(max_examples=40)
def test_equals_the_slow_crop(seed: int, shape: tuple[int, int], side: float) -> None:
    """Tiny and large boxes, within the image, across its border and beyond it, halves in the rounding."""
    torch.manual_seed(seed)
    images = torch.randint(0, 256, (2, 3, 70, 90), dtype=torch.uint8)
    boxes = random_boxes(2, 6, size=120, side=side, grid=[None, 0.5][seed % 2]) - 20 + torch.tensor([0.0, 0, 1, 1])
    out = ops.crop_warp(images, boxes, *shape, FILL)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, slow_crops(images, boxes, *shape), **CLOSE)


@pytest.mark.parametrize("side", range(1, 65))
def test_halves_in_the_share_of_the_square(side: int) -> None:
    """A box cut in two by the border, for every length: where half of the square is no whole pixel, both agree."""
    torch.manual_seed(side)
    images = torch.randint(0, 256, (1, 3, 70, 90), dtype=torch.uint8)
    starts = torch.arange(1, side + 1)[:, None].float()
    boxes = torch.cat((-starts, -starts, side - starts, side - starts), 1)[None]
    torch.testing.assert_close(ops.crop_warp(images, boxes, 31, 0, FILL), slow_crops(images, boxes, 31, 0), **CLOSE)


def test_papers_size_on_a_photo_sized_image(device: torch.device) -> None:
    image = torch.randint(0, 256, (1, 3, 375, 500), dtype=torch.uint8)
    boxes = torch.tensor([[[0.0, 0, 500, 375], [100, 50, 300, 200], [480, 360, 500, 375], [10, 10, 12, 11]]])
    out = ops.crop_warp(image.to(device), boxes.to(device), fill=FILL).cpu()
    torch.testing.assert_close(out, slow_crops(image, boxes, 227, 16), **CLOSE)


def test_context_is_the_pixels_around_the_box() -> None:
    """A black box in a white image: 16 pixels of white all round."""
    image = torch.full((1, 1, 400, 400), 255.0)
    image[:, :, 100:296, 100:198] = 0
    crop = ops.crop_warp(image.expand(1, 3, 400, 400), torch.tensor([[[100.0, 100, 198, 296]]]), 227, 16)[0, 0, 0]
    black = (crop < 128).nonzero()
    assert ((black.amin(0) - 16).abs() <= 1).all()
    assert ((black.amax(0) - 210).abs() <= 2).all()


def test_valid_part_bounds_a_padded_image() -> None:
    images = torch.randint(0, 256, (2, 3, 70, 90), dtype=torch.uint8)
    sizes = torch.tensor([[50, 90], [70, 40]])
    boxes = random_boxes(2, 8, size=80)
    out = ops.crop_warp(images, boxes, 33, 4, FILL, sizes)
    torch.testing.assert_close(out, slow_crops(images, boxes, 33, 4, sizes), **CLOSE)
    for i, (height, width) in enumerate(sizes.tolist()):
        images[i, :, height:], images[i, :, :, width:] = 255, 255
    torch.testing.assert_close(ops.crop_warp(images, boxes, 33, 4, FILL, sizes), out, **CLOSE)


def test_what_is_outside_is_the_mean() -> None:
    image = torch.zeros(1, 3, 40, 40)
    boxes = torch.tensor([[[100.0, 100, 120, 120], [-90, -90, -50, -50], [-20, 0, 20, 40], [torch.nan] * 4]])
    out = ops.crop_warp(image, boxes, 32, 4, FILL)[0]
    blank = torch.tensor(FILL).view(3, 1, 1)
    for outside in (out[0], out[1], out[3], out[2, :, :, :15]):
        assert torch.equal(outside, blank.expand_as(outside))
    assert (out[2, :, 6:26, 18:] == 0).all()


def test_pieces_do_not_change_the_result_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    images, boxes = torch.rand(2, 3, 50, 60), random_boxes(2, 23, size=50)
    whole = ops.crop_warp(images, boxes, 21, 3, FILL)
    calls = []
    real = module.F.grid_sample
    monkeypatch.setattr(module.F, "grid_sample", lambda *a, **k: calls.append(a[1].numel()) or real(*a, **k))
    monkeypatch.setattr(module, "TEMPORARY", 200_000)
    assert torch.equal(ops.crop_warp(images, boxes, 21, 3, FILL), whole)
    assert len(calls) > 2
    assert max(calls) * 4 <= 200_000
    assert ops.crops_per_chunk(227, 10 * 227 * 227 * 12) == 10
    assert ops.crops_per_chunk(227, 1) == 1


@pytest.mark.parametrize(("batch", "count"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_crop(batch: int, count: int) -> None:
    images = torch.zeros(batch, 3, 20, 30, dtype=torch.uint8)
    assert ops.crop_warp(images, random_boxes(batch, count), 16, 2).shape == (batch, count, 3, 16, 16)


def test_wrong_arguments() -> None:
    images, boxes = torch.rand(2, 3, 20, 30), random_boxes(2, 4)
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\) and boxes \(B, R, 4\)"):
        ops.crop_warp(images, boxes[:1])
    with pytest.raises(ValueError, match="context 20 leaves nothing"):
        ops.crop_warp(images, boxes, 40, 20)
