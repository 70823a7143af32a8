"""Anchors on the maps of a network, whatever size these have: those of the RPN and of RetinaNet."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detkit.backbones import FeatureInfo
from detkit.models.trace import MapShape
from detkit.ops import grid_anchors, rpn_anchors, torchvision_anchors

KEPT = 8  # sizes of images whose anchors are kept
ANCHORS_OF_CELL = {"py_faster_rcnn": rpn_anchors, "torchvision": torchvision_anchors}


class MapAnchors(nn.Module):
    """The same anchors in every cell of a map, laid out as the code of `layout` does, see ops/anchors.py.

    ratios: height / width. scales: of each map, times its stride. offset: how many pixels the cells lie right of and
    below where `py_faster_rcnn` has its anchors.
    """

    def __init__(
        self,
        layout: str,
        maps: Sequence[FeatureInfo],
        ratios: Sequence[float],
        scales: Sequence[Sequence[float]],
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.layout, self.strides = layout, [info.stride for info in maps]
        self._made: dict[Any, list[Tensor]] = {}  # the last ones
        for number, (stride, sizes) in enumerate(zip(self.strides, scales, strict=True)):
            cell = ANCHORS_OF_CELL[layout](stride, ratios, sizes)
            moved = cell + offset if layout == "py_faster_rcnn" else cell
            self.register_buffer(f"cell{number}", moved, persistent=False)

    def forward(self, sides: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Rows and columns of each map -> its anchors (A, 4), in pixels of the input, cell by cell."""
        cells = [self.get_buffer(f"cell{number}") for number in range(len(sides))]
        if torch.compiler.is_compiling() or type(cells[0]) is not Tensor:
            return self._lay(sides, cells)
        key = (*sides, cells[0].device, cells[0].dtype)
        if key not in self._made:
            if len(self._made) >= KEPT:
                del self._made[next(iter(self._made))]
            with torch.inference_mode(False):  # training may be the next to read them
                self._made[key] = self._lay(sides, cells)
        return [*self._made[key]]

    def _lay(self, sides: Sequence[tuple[int, int]], cells: Sequence[Tensor]) -> list[Tensor]:
        return [grid_anchors(*side, step, cell) for side, step, cell in zip(sides, self.steps(sides), cells)]

    def steps(self, sides: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the pixels between the cells of each map, down and across."""
        if self.layout != "torchvision":
            return [(stride, stride) for stride in self.strides]
        # torchvision shares the input out among a map's cells, which on the coarsest map is less than its stride
        height, width = (side * self.strides[0] for side in sides[0])
        return [(height // rows, width // columns) for rows, columns in sides]

    def shapes(self, sides: Sequence[tuple[int, int]]) -> list[MapShape]:
        """Return what `trace` tells of the maps."""
        return [MapShape(*side, *step) for side, step in zip(sides, self.steps(sides))]


def sides_of(maps: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Return rows and columns of maps (B, C, rows, columns)."""
    return [(x.shape[-2], x.shape[-1]) for x in maps]
