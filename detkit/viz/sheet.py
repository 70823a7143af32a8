"""Several images as one."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from detkit.viz.draw import INK, PAPER, as_array, draw, font_of, shorten

# images of objects shown beside each other are enlarged to this many pixels, so that names can be read
READABLE = 400


def mosaic(
    images: Sequence[ArrayLike], titles: Sequence[str] | None = None, columns: int | None = None
) -> NDArray[np.uint8]:
    """Return the images in rows, each with its title above.

    Images are scaled to fit a common cell, as wide as the widest and as high as the highest of them. columns: by
    default as many as make the sheet about square.
    """
    from PIL import Image, ImageDraw

    tiles = [as_array(image, np.uint8) for image in images]
    if not tiles:
        raise ValueError("mosaic: expected at least one image")
    if columns is None:
        columns = math.ceil(math.sqrt(len(tiles)))
    columns = min(columns, len(tiles))
    width = max(tile.shape[1] for tile in tiles)
    height = max(tile.shape[0] for tile in tiles)
    factors = [min(width / tile.shape[1], height / tile.shape[0]) for tile in tiles]
    sizes = [(round(p.shape[1] * f) or 1, round(p.shape[0] * f) or 1) for p, f in zip(tiles, factors)]
    gap = max(4, round(width / 80))
    font = font_of(max(12, round(width / 30)))
    head = round(font.size * 1.6) if titles else 0
    heights = [max(size[1] for size in sizes[at : at + columns]) for at in range(0, len(sizes), columns)]

    sheet = Image.new("RGB", (columns * (width + gap) + gap, sum(heights) + len(heights) * (head + gap) + gap), PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (tile, size) in enumerate(zip(tiles, sizes)):
        row, column = divmod(index, columns)
        left = gap + column * (width + gap)
        top = gap + sum(heights[:row]) + row * (head + gap)
        fitted = Image.fromarray(np.ascontiguousarray(tile))
        if size != fitted.size:
            fitted = fitted.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(fitted, (left + (width - size[0]) // 2, top + head + (heights[row] - size[1]) // 2))
        if titles:
            title = shorten(titles[index], font, width)
            pen.text((left + width / 2, top + head / 2), title, INK, font, anchor="mm")
    return np.array(sheet)


def draw_pair(
    image: ArrayLike, truth: Mapping[str, Any], found: Mapping[str, Any], classes: Sequence[str]
) -> NDArray[np.uint8]:
    """Return the ground truth beside the detections of one image; small images are enlarged.

    truth: boxes (N, 4), labels (N,) and perhaps ignore (N,); found: boxes (M, 4), labels (M,) and scores (M,).
    """
    from PIL import Image

    tile = Image.fromarray(np.ascontiguousarray(as_array(image, np.uint8)))
    factor = max(1.0, READABLE / max(tile.size))
    tile = tile.resize((round(tile.width * factor), round(tile.height * factor)), Image.Resampling.BICUBIC)
    tiles = []
    for objects in (truth, found):
        boxes = as_array(objects["boxes"], np.float64).reshape(-1, 4) * factor
        scores, ignore = objects.get("scores"), objects.get("ignore")
        tiles.append(draw(np.asarray(tile), boxes, objects["labels"], classes, scores, ignore))
    return mosaic(tiles, ("ground truth", "detections"), columns=2)
