"""Reference boxes laid over feature maps.

Those of a cell are made once a model, on the host: loops over maps, ratios and scales.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def default_boxes(
    maps: Sequence[tuple[int, int]],
    steps: Sequence[float],
    min_sizes: Sequence[float],
    max_sizes: Sequence[float],
    aspect_ratios: Sequence[Sequence[float]],
) -> Tensor:
    """Return SSD's default boxes, (A, 4) float32 xyxy in input pixels, not clipped (SSD, section 2.2).

    One entry a map in each argument. maps: (rows, columns). steps: pixels a cell. min_sizes, max_sizes: pixels.
    aspect_ratios: ratios above 1; each gives itself and its inverse. Order: maps as given, cells row by row, and in a
    cell the squares of min and sqrt(min * max), then for each ratio the box min * sqrt(ar) wide and min / sqrt(ar) high
    and its transpose. Centres are (i + .5) * step.
    SSD300 has 8732 boxes, SSD512 24564.

        >>> default_boxes([(1, 1)], [300], [100], [225], [[]])  # a map of one cell: two squares about its centre
        tensor([[100., 100., 200., 200.],
                [ 75.,  75., 225., 225.]])
    """
    arguments = (maps, steps, min_sizes, max_sizes, aspect_ratios)
    counts = list(map(len, arguments))
    if len(set(counts)) != 1:
        raise ValueError(
            "default_boxes: expected one entry a map in maps, steps, min_sizes, max_sizes and aspect_ratios, got "
            + ", ".join(map(str, counts))
        )
    levels = [torch.zeros(0, 4, dtype=torch.float64)]
    for (rows, columns), step, small, large, ratios in zip(*arguments):
        middle = math.sqrt(small * large)
        sides = [(small, small), (middle, middle)]
        for ratio in ratios:
            root = math.sqrt(ratio)
            sides += [(small * root, small / root), (small / root, small * root)]
        half = torch.tensor(sides, dtype=torch.float64) / 2
        levels.append(grid_anchors(rows, columns, step, torch.cat((step / 2 - half, step / 2 + half), -1)))
    return torch.cat(levels).float()


def rpn_anchors(base: int, ratios: Sequence[float], scales: Sequence[float]) -> Tensor:
    """Return the RPN's anchors of the cell at the origin, (A, 4) float32 xyxy (Faster R-CNN, section 3.1.1).

    base: side of the square that all are made from, pixels, the map's stride. ratios: height / width. scales:
    multiples of the base's sides. Order: ratio after ratio, in each the scales. As in the authors' code sides are
    rounded to whole pixels before they are scaled, halves to even; base 16 with ratios .5, 1, 2 and scales 8, 16, 32
    gives the nine published ones, the first [-83, -39, 100, 56] in 1-based inclusive pixels.
    """
    sides = []
    for ratio in ratios:
        width = round(math.sqrt(base * base / ratio))
        height = round(width * ratio)
        sides += [(width * scale, height * scale) for scale in scales]
    half = torch.tensor(sides, dtype=torch.float64).view(-1, 2) / 2
    return torch.cat((base / 2 - half, base / 2 + half), -1).float()


def torchvision_anchors(base: int, ratios: Sequence[float], scales: Sequence[float]) -> Tensor:
    """Return the anchors of the cell at the origin as torchvision's detectors have them, (A, 4) float32 xyxy.

    Arguments and order as in `rpn_anchors`. Anchors are centred on the cell's upper left corner, all of a scale have
    the same area but for rounding, and half their sides are rounded to whole pixels, halves to even.
    """
    halves = [
        (round(base * scale / math.sqrt(ratio) / 2), round(base * scale * math.sqrt(ratio) / 2))
        for ratio in ratios
        for scale in scales
    ]
    half = torch.tensor(halves, dtype=torch.float32).view(-1, 2)
    return torch.cat((-half, half), -1)


def grid_anchors(rows: int, columns: int, stride: float | tuple[float, float], cell: Tensor) -> Tensor:
    """Lay the anchors `cell` (A, 4) over a map: (rows * columns * A, 4), cells row by row, then the A of a cell.

    stride: pixels a cell, one number or (vertical, horizontal).
    """
    down, right = stride if isinstance(stride, tuple) else (stride, stride)
    y = torch.arange(rows, device=cell.device, dtype=cell.dtype) * down
    x = torch.arange(columns, device=cell.device, dtype=cell.dtype) * right
    shift = torch.stack((x.expand(rows, columns), y.unsqueeze(1).expand(rows, columns)), -1).repeat(1, 1, 2)
    return (shift.unsqueeze(2) + cell).reshape(-1, 4)
