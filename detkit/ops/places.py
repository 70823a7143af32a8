"""Anchors in the cells of maps: boxes by direct location prediction, and which object each place learns.

YOLOv2 (Redmon and Farhadi, YOLO9000, CVPR 2017, section 2) has one map, YOLOv3 (2018, sections 2.1 and 2.3) several. A
place is an anchor of a cell. The places of a detector come map after map, in each cell by cell, row after row, then the
anchors of a cell. A raw output of a place is x, y, w, h, objectness, and one logit a class. Boxes, cells and anchors
are in pixels of the input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.ops.boxes import box_iou, cxcywh_to_xyxy, xyxy_to_cxcywh
from detkit.ops.coders import MAX_LOG_SCALE
from detkit.ops.kmeans import shape_iou
from detkit.ops.matching import Match
from detkit.ops.yolo import place_objects


class AnchorMap(NamedTuple):
    """A map of rows x columns cells.

    cell: width and height of a cell. anchors: (A, 2) width and height of a cell's anchors. slots: (K,) int64, which of
    them each of the detector's K anchors is, -1 where it is another map's.
    """

    rows: int
    columns: int
    cell: tuple[float, float]
    anchors: Tensor
    slots: Tensor


class Places(NamedTuple):
    """All places of `maps`. corner: (P, 2) the upper left corner of each one's cell, x and y in cells; cell, anchor:
    (P, 2) width and height."""

    maps: tuple[AnchorMap, ...]
    corner: Tensor
    cell: Tensor
    anchor: Tensor


@dataclass(frozen=True)
class PlaceMatch(Match):
    """place: (B, M, N) int64, that of each object on each map; -1 where the object is not learned there."""

    place: Tensor


def lay_places(maps: Sequence[AnchorMap]) -> Places:
    """Return the places of maps."""
    corners, cells, anchors = [], [], []
    for rows, columns, (width, height), own, _ in maps:
        y, x = (torch.arange(side, device=own.device, dtype=torch.float32) for side in (rows, columns))
        corner = torch.stack((x.expand(rows, columns), y.unsqueeze(1).expand(rows, columns)), -1)
        corners.append(corner.view(-1, 1, 2).expand(-1, len(own), -1).reshape(-1, 2))
        cells.append(torch.stack([torch.full_like(corners[-1][:, 0], side) for side in (width, height)], 1))
        anchors.append(own.repeat(rows * columns, 1))
    return Places(tuple(maps), torch.cat(corners), torch.cat(cells), torch.cat(anchors))


def decode_places(raw: Tensor, places: Places) -> Tensor:
    """Return boxes (B, P, 4) xyxy from raw outputs (B, P, 4 or more) (YOLO9000, figure 3; YOLOv3, figure 2).

    Sides are cut to at most exp(MAX_LOG_SCALE) times the anchor's.
    """
    raw = raw.float()
    centre = (places.corner + raw[..., :2].sigmoid()) * places.cell
    sides = places.anchor * raw[..., 2:4].clamp(max=MAX_LOG_SCALE).exp()
    return cxcywh_to_xyxy(torch.cat((centre, sides), -1))


def anchor_boxes(places: Places) -> Tensor:
    """Return the anchors (P, 4) xyxy, each in the middle of its cell."""
    return cxcywh_to_xyxy(torch.cat(((places.corner + 0.5) * places.cell, places.anchor), -1))


@torch.no_grad()
def assign_places(
    predicted: Tensor,
    boxes: Tensor,
    valid: Tensor,
    ignore: Tensor | None,
    anchors: Tensor,
    places: Places,
    priority: Tensor | None = None,
) -> PlaceMatch:
    """Return which object each place learns, and the best IoU of each predicted box with any object.

    predicted: (B, P, 4) of `decode_places`; boxes: (B, N, 4) xyxy; valid: (B, N) bool, False for padding; ignore:
    (B, N) bool, objects not trained on, or None; anchors: (K, 2), all of the detector's. An object belongs to the
    anchor of the most similar shape, ties to the first, and so to the maps that have it, there to the cell of its
    centre (the authors' code); of several at a place to the one of highest `priority` (B, N). A place of ignored
    objects only is IGNORED. IoUs count ignored objects, too.
    """
    parts = xyxy_to_cxcywh(boxes)
    nearest = shape_iou(parts[..., 2:], anchors).argmax(-1)
    found, first = [], 0
    for rows, columns, (width, height), own, slots in places.maps:
        column = (parts[..., 0] / width).long().clamp(0, columns - 1)
        row = (parts[..., 1] / height).long().clamp(0, rows - 1)
        slot = slots[nearest]
        place = first + (row * columns + column) * len(own) + slot
        found.append(torch.where(valid & (slot >= 0), place, -1))
        first += rows * columns * len(own)
    place = torch.stack(found, 1)
    flat, count = place.flatten(1), place.shape[-1]
    of_maps = [None if one is None else one.repeat(1, len(found)) for one in (ignore, priority)]
    index = place_objects(flat, flat >= 0, of_maps[0], predicted.shape[1], of_maps[1])
    index = torch.where(index >= 0, index % max(count, 1), index)
    if ignore is not None:
        place = place.masked_fill(ignore.unsqueeze(1), -1)
    if count == 0:
        return PlaceMatch(index, predicted.new_zeros(index.shape), place)
    iou = box_iou(boxes, predicted).masked_fill_(~valid.unsqueeze(-1), 0).amax(1)
    return PlaceMatch(index, iou, place)
