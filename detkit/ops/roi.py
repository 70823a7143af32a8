"""Features of regions, pooled from a feature map to a fixed size.

Boxes are (B, R, 4) xyxy in input pixels, float32 and finite; the features of image b are features[b]. A padded row is
an ordinary box whose output the caller ignores. Or boxes are (K, 5), with the number of the image in front: then the
result is (K, C, ...). R, B and K may be 0. The arithmetic is float32 (float64 for float64 features) whatever autocast
is on. Gradients reach the features, never the boxes: proposals are constants.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detkit.ops.align_cpu import RoIAlignOnCPU, suits
from detkit.ops.boxes import as_float

# The kernel finds a bin's edge as i * (cells / level), rounded in float32: exact up to here, off by a cell beyond it.
FINEST_LEVEL = 6


def roi_pool(features: Tensor, boxes: Tensor, size: int, stride: float) -> Tensor:
    """Return (B, R, C, size, size), the maximum over each bin of each box (Fast R-CNN, section 2.1).

        >>> features = torch.arange(16.0).view(1, 1, 4, 4)  # a cell each 16 pixels
        >>> roi_pool(features, torch.tensor([[[0.0, 0, 48, 48]]]), size=2, stride=16)[0, 0, 0]
        tensor([[ 5.,  7.],
                [13., 15.]])

    features: (B, C, H, W), one cell each `stride` pixels. A box covers the cells round(x1 / stride) to
    round(x2 / stride), both included and at least one; bin i of n cells in `size` bins runs from floor(i * n / size)
    up to ceil((i + 1) * n / size), cut to the map; a bin outside the map is 0. round is C's, halves away from zero,
    in Caffe and in torchvision's kernel alike (torch.round takes halves to the even number).
    """
    features = as_float(features)
    return _per_image(_kernels().roi_pool(features, _rois(features, boxes), size, 1 / stride), boxes)


def roi_align(
    features: Tensor,
    boxes: Tensor,
    size: int,
    stride: float,
    sampling: int = 2,
    aligned: bool = True,
) -> Tensor:
    """Return (B, R, C, size, size), the mean of bilinear samples in each bin of each box (Mask R-CNN, section 3).

    features: (B, C, H, W), one cell each `stride` pixels. sampling: samples a bin and side; 0: as many as the bin has
    cells. aligned: a cell's value lies at its centre, (i + .5) * stride; without it at i * stride, as first published,
    and boxes count as at least one cell wide and high.
    """
    features = as_float(features)
    rois = _rois(features, boxes)
    return _per_image(_align(features, rois, size, 1 / stride, sampling, aligned), boxes)


def pyramid_pool(
    maps: Sequence[Tensor],
    boxes: Tensor,
    level: Tensor,
    size: int,
    strides: Sequence[float],
    align: bool = True,
    aligned: bool = True,
) -> Tensor:
    """Return (B, R, C, size, size), each box pooled from one of several maps (FPN, section 4.2).

    maps: (B, C, H, W) each, one cell each of `strides` pixels; level: (B, R) int64, which map. align: as `roi_align`
    with 2 samples and `aligned`, else as `roi_pool`.
    """
    features = [as_float(x) for x in maps]
    rois, level = _rois(features[0], boxes), level.flatten()
    pool = partial(_align, sampling=2, aligned=aligned) if align else _kernels().roi_pool
    # A host sync a map: pooling every box from every map would need none, but costs as many times the work.
    rows = [(level == number).nonzero().squeeze(1) for number in range(len(features))]
    parts = [pool(x, rois[part], size, 1 / stride) for x, stride, part in zip(features, strides, rows)]
    return _per_image(torch.cat(parts)[torch.cat(rows).argsort()], boxes)


def psroi_pool(features: Tensor, boxes: Tensor, size: int, stride: float) -> Tensor:
    """Return (B, R, C, size, size): position-sensitive RoI pooling (R-FCN, section 2.2, equation 1).

    features: (B, C * size ** 2, H, W), one cell each `stride` pixels; of channel c the map c * size ** 2 + i * size + j
    is for the bin in row i, column j, and that bin alone reads it. A box, cut to the map, covers the cells
    round(x1 / stride) up to round(x2 / stride), at least one; bin i of n cells runs from floor(i * n / size) up to
    ceil((i + 1) * n / size); its value is the mean of its cells, 0 outside the map. round takes halves up.
    """
    rows, columns = features.shape[-2:]
    # torchvision's kernel reads neither the last row nor the last column: a border that no bin reaches stands for them.
    # Beyond it gradients are not those of the values, so that boxes are cut.
    features = torch.nn.functional.pad(as_float(features), (0, 1, 0, 1))
    image, left, top, right, bottom = _rois(features, boxes).unbind(1)
    left, right = (x.clamp(0, columns * stride) for x in (left, right))
    top, bottom = (y.clamp(0, rows * stride) for y in (top, bottom))
    rois = torch.stack((image, left, top, right, bottom), 1)
    return _per_image(_kernels().ps_roi_pool(features, rois, size, 1 / stride), boxes)


def spp_pool(
    features: Tensor,
    boxes: Tensor,
    levels: Sequence[int] = (6, 3, 2, 1),
    stride: float = 16,
    centre: float = 20.5,
    shrink: float = 6.5,
) -> Tensor:
    """Return (B, R, C, sum(level ** 2)), the maxima over a pyramid of bins (SPPNet, section 4.1, and its code).

    features: (B, C, H, W), one cell each `stride` pixels. levels: bins a side, 1 to 6, in the order of the result; in
    a level bins go row by row. A box covers the cells floor((x1 + .5 - centre + shrink) / stride + .5) to
    ceil((x2 - .5 - centre - shrink) / stride - .5), both included; where they cross, the cell between them; all cut to
    the map. Bin i of n cells in a level runs from floor(i * n / level) up to ceil((i + 1) * n / level).

    centre: the pixel coordinate under the middle of cell 0; shrink: how far in pixels a cell's middle may lie outside
    the box. The defaults are those published for ZF-5 (offset0 21 in 1-based pixels, offset 6.5), whose convolutions
    are hardly padded. A VGG's cells have their middle at stride / 2, a torchvision ResNet's at .5.

    Takes about three times the memory of the result.
    """
    if any(not 1 <= level <= FINEST_LEVEL for level in levels):
        raise ValueError(f"spp_pool: levels must be from 1 to {FINEST_LEVEL}, got {tuple(levels)}")
    features = as_float(features)
    rows, columns = features.shape[-2:]
    rois = _rois(features, boxes)
    cells = features.new_tensor([columns, rows] * 2, dtype=torch.float64) - 1
    windows = spp_windows(boxes[..., -4:], stride, centre, shrink).minimum(cells)
    rois = torch.cat((rois[:, :1], windows.view(-1, 4).to(rois)), 1)
    pooled = torch.cat([_kernels().roi_pool(features, rois, level, 1.0).flatten(2) for level in levels], -1)
    return _per_image(pooled, boxes)


def spp_windows(boxes: Tensor, stride: float = 16, centre: float = 20.5, shrink: float = 6.5) -> Tensor:
    """Return the first and last cells (..., 4) float64, xyxy, that `spp_pool` pools of boxes (..., 4), on a map without
    end at the right and below."""
    low, high = boxes.double().split(2, -1)
    low = ((low + 0.5 - centre + shrink) / stride + 0.5).floor()
    high = ((high - 0.5 - centre - shrink) / stride - 0.5).ceil()
    between = ((low + high) / 2).floor()
    crossed = low > high
    return torch.cat((torch.where(crossed, between, low), torch.where(crossed, between, high)), -1).clamp(min=0)


def _kernels() -> Any:
    import torchvision  # not at the top: scoring detections needs box_iou, and no torchvision

    return torchvision.ops


def _align(features: Tensor, rois: Tensor, size: int, scale: float, sampling: int, aligned: bool) -> Tensor:
    """(B, C, H, W) and (K, 5) -> (K, C, size, size)."""
    align: Any = RoIAlignOnCPU.apply if suits(features, sampling) else _kernels().roi_align
    return align(features, rois, size, scale, sampling, aligned)


def _rois(features: Tensor, boxes: Tensor) -> Tensor:
    """Boxes (B, R, 4) or (K, 5) as the kernels take them, (K, 5) with the image in front, without a host sync."""
    boxes = boxes.detach().to(features.dtype)
    if boxes.ndim == 2 and boxes.shape[1] == 5:
        return boxes
    if boxes.ndim != 3 or boxes.shape[-1] != 4 or len(boxes) != len(features):
        raise ValueError(f"expected boxes ({len(features)}, R, 4), one row of boxes an image, got {tuple(boxes.shape)}")
    image = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype).view(-1, 1, 1)
    return torch.cat((image.expand(*boxes.shape[:2], 1), boxes), -1).view(-1, 5)


def _per_image(pooled: Tensor, boxes: Tensor) -> Tensor:
    """(B * R, ...) -> (B, R, ...); (K, ...) as it is."""
    return pooled if boxes.ndim == 2 else pooled.view(*boxes.shape[:2], *pooled.shape[1:])
