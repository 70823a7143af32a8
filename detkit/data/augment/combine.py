"""Augmentation that makes one image of several of the data set: mosaic (YOLOv4, section 3.3) and mixup (Zhang et al.,
"Bag of Freebies for Training Object Detection Neural Networks", 2019, section 3.1)."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from detkit.data.augment.ssd import Size, at_most, from_pixels, interval, to_pixels
from detkit.data.transforms import resize, resize_masks

# An image, its boxes (N, 5) in its pixels, as `Sample`s have them in shares, and all masks that it came with, [] or one
# array (M, H, W)
Pixels = tuple[np.ndarray, np.ndarray, list[np.ndarray]]


class Combination(ABC):
    """A step of `data.augment` that takes `others` images of the data set beside the one at hand.

    The result has the size of the image at hand. Of each image a window is shown: boxes are clipped to it, and objects
    of which less than `min_visible` of the area is left are dropped; proposals stay while any part of them is left.
    With probability 1 - p the step leaves the image as it is.
    """

    others: int

    def __init__(self, min_visible: float, p: float) -> None:
        self.min_visible, self.p = at_most("min_visible", min_visible, 1), at_most("p", p, 1)

    def __call__(self, samples: Sequence[dict[str, Any]], random: np.random.Generator) -> dict[str, Any]:
        """Return one sample of those of the images, the one at hand first: {"image", "bboxes"}, see `Chain`."""
        image, parts, masks = self.combine(samples, random)
        boxes = np.concatenate(parts)
        # objects first; proposals, best first in each image, in turn, so that none of an image's are cut before others
        rank = np.concatenate([(np.cumsum(part[:, 4] < 0) - 1) * (part[:, 4] < 0) for part in parts])
        boxes = boxes[np.lexsort((rank, boxes[:, 4] < 0))]
        bboxes = from_pixels(boxes, image.shape[:2], (0, 0))
        return {"image": image, "bboxes": bboxes, **({"masks": np.concatenate(masks)} if masks else {})}

    @abstractmethod
    def combine(
        self, samples: Sequence[dict[str, Any]], random: np.random.Generator
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Return the image, and the boxes (N, 5) and masks (M, H, W) of the samples, in their order, in its pixels."""

    def window(self, sample: dict[str, Any], size: Size, zoom: float, random: np.random.Generator) -> Pixels:
        """Return a random part of an image, resized to `size` (height, width), which it covers; its boxes and masks.

        zoom: how many times as large as it must be to cover it the image is shown.
        """
        image = sample["image"]
        scale = zoom * max(outer / inner for outer, inner in zip(size, image.shape))
        height, width = (min(inner, max(1, round(outer / scale))) for outer, inner in zip(size, image.shape[:2]))
        top, left = (int(random.integers(inner - part + 1)) for inner, part in zip(image.shape, (height, width)))
        part = resize(image[top : top + height, left : left + width], size)
        boxes = to_pixels(sample["bboxes"], image.shape)
        boxes[:, :4] -= (left, top) * 2
        boxes[:, :4] *= (size[1] / width, size[0] / height) * 2
        clipped = boxes.copy()
        clipped[:, :4] = boxes[:, :4].clip(0, (size[1], size[0]) * 2)
        left_over = _area(clipped)
        keep = (left_over > 0) & ((left_over >= self.min_visible * _area(boxes) - 1e-6) | (boxes[:, 4] < 0))
        masks = [resize_masks(whole[:, top : top + height, left : left + width], size) for whole in _masks_of(sample)]
        return part, clipped[keep], masks


class Mosaic(Combination):
    """Four images in four quarters that meet at a random point, each as large as covers its quarter, or larger.

    centre: where they meet, from and to, in shares of the image's sides. zoom: how many times larger, from and to.
    """

    others = 3

    def __init__(
        self,
        centre: Sequence[float] = (0.3, 0.7),
        zoom: Sequence[float] = (1.0, 2.0),
        min_visible: float = 0.25,
        p: float = 0.5,
    ) -> None:
        super().__init__(min_visible, p)
        self.centre, self.zoom = interval("centre", centre, 0, 1), interval("zoom", zoom, 1)

    def combine(
        self, samples: Sequence[dict[str, Any]], random: np.random.Generator
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        height, width = samples[0]["image"].shape[:2]
        y, x = (round(side * random.uniform(*self.centre)) for side in (height, width))
        canvas, parts, masks = np.empty((height, width, 3), np.uint8), [], []
        quarters = ((0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width))
        for sample, number in zip(samples, random.permutation(4).tolist()):
            top, left, bottom, right = quarters[number]
            masks += [np.zeros((len(whole), height, width), np.uint8) for whole in _masks_of(sample)]
            if top == bottom or left == right:  # of images of a pixel, or a centre at the edge
                parts.append(np.zeros((0, 5)))
                continue
            size = (bottom - top, right - left)
            part, boxes, seen = self.window(sample, size, random.uniform(*self.zoom), random)
            canvas[top:bottom, left:right] = part
            for whole in seen:
                masks[-1][:, top:bottom, left:right] = whole
            boxes[:, :4] += (left, top) * 2
            parts.append(boxes)
        return canvas, parts, masks


class MixUp(Combination):
    """Two images laid over each other, with the objects of both, as they are in the loss.

    alpha: the share of the image at hand is of the beta distribution of twice this number, the nearer to half the
    larger it is.
    """

    others = 1

    def __init__(self, alpha: float = 32.0, min_visible: float = 0.25, p: float = 0.5) -> None:
        super().__init__(min_visible, p)
        self.alpha = at_most("alpha", alpha, 1e6)
        if not self.alpha:
            raise ValueError("alpha is 0, but should be above")

    def combine(
        self, samples: Sequence[dict[str, Any]], random: np.random.Generator
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        first, second = samples
        share = random.beta(self.alpha, self.alpha)
        image, boxes, masks = self.window(second, first["image"].shape[:2], 1.0, random)
        mixed = cv2.addWeighted(first["image"], share, image, 1 - share, 0)
        return mixed, [to_pixels(first["bboxes"], mixed.shape), boxes], [*_masks_of(first), *masks]


def _masks_of(sample: dict[str, Any]) -> list[np.ndarray]:
    return [sample["masks"]] if "masks" in sample else []


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:4] - boxes[:, :2]).clip(min=0).prod(1)
