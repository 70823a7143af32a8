"""Reference boxes laid over feature maps."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def map_steps(size: tuple[int, int], maps: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """Return each map's cell (height, width) in pixels for an input `size` (height, width); maps: (rows, columns)."""
    return [(size[0] / rows, size[1] / columns) for rows, columns in maps]


def default_boxes(
    maps: Sequence[tuple[int, int]],
    steps: Sequence[float | tuple[float, float]],
    min_sizes: Sequence[float],
    max_sizes: Sequence[float],
    aspect_ratios: Sequence[Sequence[float]],
) -> Tensor:
    """Return SSD's default boxes, (A, 4) float32 xyxy in input pixels, not clipped (SSD, section 2.2).

    One entry a map in each argument. maps: (rows, columns). steps: pixels a cell, one number or (vertical,
    horizontal). min_sizes, max_sizes: pixels. aspect_ratios: ratios above 1; each gives itself and its inverse.
    Order: maps as given, cells row by row, and in a cell the squares of min and sqrt(min * max), then for each
    ratio the box min * sqrt(ar) wide and min / sqrt(ar) high and its transpose. Centres are (i + .5) * step.
    SSD300 has 8732 boxes, SSD512 24564.
    """
    counts = [len(maps), len(steps), len(min_sizes), len(max_sizes), len(aspect_ratios)]
    if len(set(counts)) != 1:
        raise ValueError(
            "default_boxes: expected one entry a map in maps, steps, min_sizes, max_sizes and aspect_ratios, got "
            + ", ".join(map(str, counts))
        )
    levels = [torch.zeros(0, 4, dtype=torch.float64)]
    # once a model, on the host: a loop over the maps
    for (rows, columns), step, small, large, ratios in zip(maps, steps, min_sizes, max_sizes, aspect_ratios):
        vertical, horizontal = step if isinstance(step, tuple | list) else (step, step)
        middle = math.sqrt(small * large)
        sides = [(small, small), (middle, middle)]
        for ratio in ratios:
            root = math.sqrt(ratio)
            sides += [(small * root, small / root), (small / root, small * root)]
        half = torch.tensor(sides, dtype=torch.float64) / 2
        y = (torch.arange(rows, dtype=torch.float64) + 0.5) * vertical
        x = (torch.arange(columns, dtype=torch.float64) + 0.5) * horizontal
        centre = torch.stack((x.expand(rows, columns), y.unsqueeze(1).expand(rows, columns)), -1).unsqueeze(2)
        levels.append(torch.cat((centre - half, centre + half), -1).view(-1, 4))
    return torch.cat(levels).float()
