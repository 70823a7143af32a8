"""Selective search (Uijlings, van de Sande, Gevers and Smeulders, IJCV 2013)."""

from dataclasses import dataclass

import numpy as np

from detkit.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Mode:
    """Strategies to combine: every colour space with every k of the segmentation with every sum of similarities."""

    colours: tuple[str, ...]
    ks: tuple[int, ...]
    similarities: tuple[str, ...]


# Section 5.2, table 3
MODES: dict[str, Mode] = {
    "single": Mode(("HSV",), (100,), ("CTSF",)),
    "fast": Mode(("HSV", "Lab"), (50, 100), ("CTSF", "TSF")),
    "quality": Mode(("HSV", "Lab", "rgI", "H", "I"), (50, 100, 150, 300), ("CTSF", "TSF", "F", "S")),
}


def selective_search(
    image: np.ndarray,
    mode: str = "single",
    seed: int = 0,
    min_size: int = 20,
    max_boxes: int | None = None,
    max_side: int | None = None,
) -> np.ndarray:
    """Return (N, 4) float32 boxes that objects may have, continuous xyxy in pixels, best rank first, each once.

    image: (H, W, 3) RGB uint8. mode: "single" (one strategy), "fast" (8) or "quality" (80). min_size: boxes with a
    side of fewer pixels are left out, as the authors' code does. max_boxes: how many to return, all by default.
    max_side: an image whose longer side has more pixels is searched in a copy of so many, whose pixels `min_size` then
    counts; by default as it is.

    Textures and colours are the paper's (section 3.2): each channel once, 25 bins of equal width. In the authors' code
    the texture reads the first channel three times, and the bin of a colour c from 0 to 1 is round(24 c). Sigma and
    strengths of the derivatives are the code's, see `regions.py`.

    Each strategy groups the regions of a segmentation (k; regions of at least k pixels) into a hierarchy. Boxes of all
    hierarchies are ranked by RND * i (section 4), with i = 1 for the whole image; as in the authors' code the initial
    regions enter once a segmentation, with the last i. `seed` decides the random numbers; an equal seed gives equal
    boxes.

    Raises UserError for an unknown mode (with the nearest) or a limit below 1, ValueError for another kind of array.
    """
    if mode not in MODES:
        raise UserError(f"unknown mode of selective search {mode!r}{did_you_mean(mode, MODES)}")
    for name, value in (("min_size", min_size), ("max_boxes", max_boxes), ("max_side", max_side)):
        if value is not None and value < 1:
            raise UserError(f"selective search: {name} is {value}, expected at least 1")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
    sides = np.array(image.shape[1::-1])
    if max_side is not None and sides.max() > max_side:
        import cv2  # only who searches waits for it

        small = np.maximum(np.rint(sides * (max_side / sides.max())), 1).astype(int)
        copy = np.asarray(cv2.resize(image, small.tolist(), interpolation=cv2.INTER_AREA))
        boxes = selective_search(copy, mode, seed, min_size, max_boxes)
        return np.minimum(boxes * np.tile(sides / small, 2), np.tile(sides, 2)).astype(np.float32)
    if min(image.shape[:2]) < min_size:
        return np.zeros((0, 4), np.float32)
    boxes, position = hierarchies(np.ascontiguousarray(image), MODES[mode])
    value = np.random.default_rng(seed).random(len(boxes)) * position
    boxes = boxes[np.argsort(value, kind="stable")]
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] >= min_size).all(1)]
    first = np.sort(np.unique(boxes, axis=0, return_index=True)[1])
    return boxes[first[:max_boxes]].astype(np.float32)


def hierarchies(image: np.ndarray, mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    """Return the boxes (M, 4) int32 of all strategies and the position (M,) of each in its hierarchy, 1 at the top."""
    # numba takes a third of a second to import
    from detkit.proposals.colours import COLOURS
    from detkit.proposals.grouping import group
    from detkit.proposals.regions import describe, texture_codes
    from detkit.proposals.segmentation import segment, smooth, sorted_edges

    boxes, positions = [], []
    for colour in mode.colours:
        converted = COLOURS[colour](image)
        edges, textures = sorted_edges(smooth(converted)), texture_codes(converted)
        for k in mode.ks:
            regions = describe(segment(edges, k, k), converted, textures)
            count = len(regions.size)
            boxes.append(regions.boxes)
            positions.append(np.full(count, count))
            for similarity in mode.similarities:
                boxes.append(group(regions, similarity).boxes[count:])
                positions.append(np.arange(count - 1, 0, -1))
    return np.concatenate(boxes), np.concatenate(positions)
