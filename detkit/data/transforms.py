"""From a photo and its boxes to the network's input: augmentation and resizing."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detkit.structures import InputSpec


class Transform:
    """Turns a photo into network input. Call it with (H, W, 3) uint8, (N, 4) boxes and the sample's seed."""

    def __init__(self, augment: Sequence[Any], spec: InputSpec) -> None:
        self.spec = spec
        self.flip = bool(augment)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, seed: Sequence[int] = (0,)
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the image (h, w, 3) of the spec's size, the boxes (M, 4) that remain, and their rows (M,)."""
        import cv2

        random = np.random.default_rng(seed)
        height, width = image.shape[:2]
        boxes = np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)
        if self.flip and random.random() < 0.5:
            image = image[:, ::-1]
            boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        h, w = self.spec.size
        image = cv2.resize(np.ascontiguousarray(image), (w, h))
        boxes = boxes * np.array((w / width, h / height) * 2, dtype=np.float32)
        keep = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) >= 1
        return image, boxes[keep], np.flatnonzero(keep)


def build_train(augment: Sequence[Any], spec: InputSpec) -> Transform:
    """Return the training transform of `data.augment`."""
    return Transform(augment, spec)


def build_test(spec: InputSpec) -> Transform:
    """Return the plain resize of validation, test and detection."""
    return Transform([], spec)
