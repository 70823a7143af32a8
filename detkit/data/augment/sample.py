"""SSD's transforms fused into one quick step."""

import random
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from detkit.data.augment.ssd import (
    Expand,
    IoUCrop,
    PhotometricDistort,
    RandomInterpolationResize,
    distort,
    only_objects,
    to_pixels,
)
from detkit.data.transforms import resize_masks


class Sample(A.DualTransform):
    """PhotometricDistort, Expand, IoUCrop and RandomInterpolationResize, or some of them, in one quick step.

    The random numbers are those of the transforms one after the other, but the canvas is never built, and only what the
    crop leaves of the image is recoloured and resized. Without fill in the crop, or without a resize, the result is the
    very same. With both, the image's edges are rounded to whole pixels of the output, and the boxes with them.
    """

    _targets = (Targets.IMAGE, Targets.BBOXES, Targets.MASK)

    def __init__(
        self,
        distort: PhotometricDistort | None,
        expand: Expand | None,
        crop: IoUCrop,
        resize: RandomInterpolationResize | None,
    ) -> None:
        self.distort, self.expand, self.crop, self.resize = distort, expand, crop, resize
        super().__init__(p=1.0)

    @property
    def targets_as_params(self) -> list[str]:
        return ["bboxes"]

    def set_random_state(self, random_generator: np.random.Generator, py_random: random.Random) -> None:
        super().set_random_state(random_generator, py_random)
        for part in (self.distort, self.expand, self.crop, self.resize):
            if part is not None:
                part.set_random_state(random_generator, py_random)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        size = canvas = params["shape"][:2]
        offset = (0, 0)
        # the order of the random numbers is that of the transforms one after the other
        colour = self.distort.get_params() if self.distort and self.distort.should_apply() else None
        if self.expand and self.expand.should_apply():
            canvas, offset = self.expand.sample(size)
        boxes = to_pixels(data["bboxes"], size)
        boxes[:, :4] += offset[::-1] * 2
        crops = self.crop.should_apply()
        window = self.crop.sample(canvas, only_objects(boxes)[:, :4]) if crops else (0, 0, *canvas[::-1])
        method = self.resize.get_params()["method"] if self.resize else None
        (top, left), (x0, y0, x1, y1) = offset, window
        # what is left of the image, in pixels of the window
        seen = (
            *(max(left - x0, 0), max(top - y0, 0)),
            *(min(left + size[1], x1) - x0, min(top + size[0], y1) - y0),
        )
        return {"colour": colour, "offset": offset, "window": window, "boxes": boxes, "method": method, "seen": seen}

    def _spans(self, params: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Columns and rows of the output that the image fills, at least one of each."""
        assert self.resize is not None
        (x0, y0, x1, y1), seen = params["window"], params["seen"]
        spans = []
        for low, high, inner, outer in (
            (seen[0], seen[2], x1 - x0, self.resize.spec.size[1]),
            (seen[1], seen[3], y1 - y0, self.resize.spec.size[0]),
        ):
            first = min(round(low * outer / inner), outer - 1)
            spans.append((first, max(round(high * outer / inner), first + 1)))
        return spans[0], spans[1]

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        (top, left), (x0, y0, x1, y1) = params["offset"], params["window"]
        seen = params["seen"]
        width, height = seen[2] - seen[0], seen[3] - seen[1]
        out = (y1 - y0, x1 - x0) if self.resize is None else self.resize.spec.size
        if width <= 0 or height <= 0:  # the window holds nothing of the image
            assert self.expand is not None
            return np.full((*out, 3), self.expand.colour, dtype=np.uint8)
        above, before = max(y0 - top, 0), max(x0 - left, 0)
        part = img[above : above + height, before : before + width]
        if params["colour"] is not None:
            part = distort(part, **params["colour"])
        columns, rows = (seen[0], seen[2]), (seen[1], seen[3])
        if self.resize is not None:
            columns, rows = self._spans(params)
            size = (columns[1] - columns[0], rows[1] - rows[0])
            part = cv2.resize(part, size, interpolation=params["method"])
        if self.expand is None:
            return part
        return self.expand.cut(part, (rows[0], columns[0]), (0, 0, out[1], out[0]))

    def apply_to_masks(self, masks: np.ndarray, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        (top, left), (x0, y0, x1, y1), seen = params["offset"], params["window"], params["seen"]
        width, height = seen[2] - seen[0], seen[3] - seen[1]
        out = (y1 - y0, x1 - x0) if self.resize is None else self.resize.spec.size
        canvas = np.zeros((len(masks), *out), np.uint8)
        if width > 0 and height > 0:
            above, before = max(y0 - top, 0), max(x0 - left, 0)
            part = masks[:, above : above + height, before : before + width]
            columns, rows = (seen[0], seen[2]), (seen[1], seen[3])
            if self.resize is not None:
                columns, rows = self._spans(params)
            size = (rows[1] - rows[0], columns[1] - columns[0])
            canvas[:, rows[0] : rows[1], columns[0] : columns[1]] = resize_masks(part, size)
        return canvas

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        window, seen = params["window"], params["seen"]
        boxes = self.crop.keep(params["boxes"], window)
        if self.resize is None or seen[2] <= seen[0] or seen[3] <= seen[1]:
            return boxes
        for axis, span in enumerate(self._spans(params)):
            # from the window's fractions to pixels, from the image's edges to those of its span, to fractions again
            low, high = seen[axis], seen[axis + 2]
            pixels = boxes[:, axis:4:2] * (window[axis + 2] - window[axis])
            moved = span[0] + (pixels - low) * ((span[1] - span[0]) / (high - low))
            boxes[:, axis:4:2] = moved / self.resize.spec.size[1 - axis]
        return boxes


def fuse(transforms: list[Any]) -> list[Any]:
    """Replace neighbours PhotometricDistort, Expand, IoUCrop, RandomInterpolationResize by one Sample."""
    fused: list[Any] = []
    for transform in transforms:
        last = fused[-1] if fused else None
        if isinstance(transform, IoUCrop):
            expand = fused.pop() if isinstance(last, Expand) else None
            distortion = fused.pop() if fused and isinstance(fused[-1], PhotometricDistort) else None
            transform = Sample(distortion, expand, transform, None)
        elif isinstance(transform, RandomInterpolationResize) and transform.p == 1 and isinstance(last, Sample):
            fused.pop()
            transform = Sample(last.distort, last.expand, last.crop, transform)
        fused.append(transform)
    return fused
