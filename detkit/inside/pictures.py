"""Filters, maps, projections and heat as images."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detkit.explain.canvas import HEAT, PANEL, Canvas

Picture = NDArray[np.uint8]
GAP = 2  # pixels between tiles
GROUND = 36  # grey of what lies between them
QUANTILE = 0.995  # of a map's values, which is shown as the largest: a few may be far above all others


def coloured(values: Tensor, scale: float | None = None) -> Picture:
    """Signed values (3, h, w) around grey; scale: what is shown as white, by default the largest."""
    scale = scale or float(values.abs().flatten().quantile(QUANTILE)) or float(values.abs().max()) or 1.0
    return as_picture((values / scale).clamp(-1, 1) * 127 + 128)


def as_picture(pixels: Tensor) -> Picture:
    """(3, h, w), 0 to 255 -> (h, w, 3) uint8."""
    return pixels.detach().cpu().permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def heat_over(image: Picture, heat: Tensor, box: np.ndarray | None = None) -> Picture:
    """Lay a heat map (rows, columns), its positive part, over a darkened image; box: of what it is about, xyxy."""
    positive = heat.detach().float().cpu().clamp(min=0).numpy()
    most = float(np.quantile(positive, QUANTILE)) or float(positive.max()) or 1.0
    canvas = Canvas(image, PANEL, 0.55)
    height, width = image.shape[:2]
    canvas.tint((positive / most).clip(0, 1), (0, 0, width, height), HEAT)
    if box is not None:
        canvas.box(box, (255, 255, 255), 1)
    return canvas.drawing()


def resized(picture: Picture, width: int, height: int, smooth: bool = True) -> Picture:
    method = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize((width, height), method))


def tiled(tiles: Sequence[Picture], side: int, columns: int | None = None, smooth: bool = True) -> Picture:
    """Put pictures into a grid of squares of `side` pixels, in rows."""
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    sheet = np.full((rows * (side + GAP) - GAP, columns * (side + GAP) - GAP, 3), GROUND, np.uint8)
    for number, tile in enumerate(tiles):
        factor = side / max(tile.shape[:2])
        height, width = (max(1, round(length * factor)) for length in tile.shape[:2])
        top = number // columns * (side + GAP) + (side - height) // 2
        left = number % columns * (side + GAP) + (side - width) // 2
        sheet[top : top + height, left : left + width] = resized(tile, width, height, smooth)
    return sheet


def maps_picture(maps: Tensor, side: int, columns: int) -> Picture:
    """Feature maps (N, h, w), each from black, at 0 or below, to white, its largest value."""
    tiles = []
    for one in maps.float().cpu().numpy():
        grey = (one / max(float(one.max()), 1e-9)).clip(0, 1) * 255
        tiles.append(np.repeat(grey.astype(np.uint8)[..., None], 3, 2))
    return tiled(tiles, side, columns, smooth=False)


def filters_picture(weight: Tensor, side: int, columns: int) -> Picture:
    """The filters (N, 3, k, k) of a first layer, each on a scale of its own, grey for 0."""
    return tiled([coloured(one, float(one.abs().max()) or 1.0) for one in weight], side, columns, smooth=False)
