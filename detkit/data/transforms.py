"""From an image and its boxes to the network's input.

Testing only resizes the image to the network's size. Training runs `data.augment` first, see augment/
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detkit.structures import InputSpec

if TYPE_CHECKING:
    from detkit.data.augment import Chain

MIN_AREA = 1.0  # square pixels of the network's input: smaller boxes are not trained on


class Transform:
    """Turns an image and its boxes into network input, the same way whenever the seed is the same."""

    def __init__(self, spec: InputSpec, chain: "Chain | None" = None) -> None:
        self.spec = spec
        self.chain = chain

    def __call__(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        seed: tuple[int, int] = (0, 0),
        objects: int | None = None,
        other: Callable[[np.random.Generator], tuple[Any, ...]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Transform one image, see `run`, which has its masks as well."""
        return self.run(image, boxes, None, seed, objects, other)[:3]

    def run(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        masks: np.ndarray | None,
        seed: tuple[int, int] = (0, 0),
        objects: int | None = None,
        other: Callable[[np.random.Generator], tuple[Any, ...]] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Transform one image, its boxes, and the masks of its objects where there are any.

        image: (H, W, 3) uint8, not written to. boxes: (N, 4) float32 xyxy pixels. objects: how many of them, from the
        first, are objects, by default all; the others are proposals, which no random draw looks at and which stay
        where any part of them is left. masks: (N, H, W) uint8, 0 or 1, of objects without proposals. other: draws
        another image for those transforms that take several: pixels, boxes, how many of these are objects, and their
        masks where there are any, as `image`, `boxes`, `objects` and `masks`. Returns the image (h, w, 3) uint8 of the
        size that the spec gives it, the boxes (M, 4) float32 that remain, in its pixels, objects before proposals,
        which rows (M,) int64 they were, and their masks (M, h, w); rows of other images are numbered on, as these were
        drawn.
        """
        boxes = _as_shares(image, boxes)
        objects = len(boxes) if objects is None else objects
        rows = np.arange(len(boxes))
        rows[objects:] = -1 - rows[objects:]
        if self.chain is not None:

            def draw(random: np.random.Generator) -> tuple[Any, ...]:
                assert other is not None
                pixels, given, *others = other(random)
                return pixels, _as_shares(pixels, given), *others

            image, boxes, rows, masks = self.chain.run(image, boxes, masks, seed, objects, other and draw)
        size = self.spec.fit(*image.shape[:2])
        image = resize(image, size)
        boxes = boxes * np.array(size[::-1] * 2)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        keep = np.where(rows >= 0, area >= MIN_AREA, area > 0)
        masks = None if masks is None else resize_masks(masks[keep], size)
        return image, boxes[keep].astype(np.float32), np.where(rows < 0, -1 - rows, rows)[keep], masks


def _as_shares(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) in pixels -> fractions of the image, clipped to it."""
    height, width = image.shape[:2]
    return np.clip(boxes / np.array((width, height) * 2, dtype=np.float64), 0, 1)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, 3) uint8 to `size` (height, width), bilinear; the image itself where it has that size."""
    import cv2

    if image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (N, H, W) to `size` (height, width), each pixel the nearest; the masks themselves where they have it."""
    if masks.shape[1:] == tuple(size):
        return masks
    rows, columns = (((np.arange(n) + 0.5) * (m / n)).astype(np.int64) for n, m in zip(size, masks.shape[1:]))
    return masks[:, rows[:, None], columns]


def pad(images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Stack images (h, w, 3) uint8 at the upper left of their largest size, the rest black.

    Returns pixels (B, 3, H, W), a view: in memory they stay channels last, which is how convolutions like them best;
    and sizes (B, 2) int64, the height and width of each.
    """
    sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.int64).reshape(-1, 2)
    height, width = sizes.amax(0).tolist()
    pixels = torch.zeros(len(images), height, width, 3, dtype=torch.uint8)
    into = pixels.numpy()
    for row, image in enumerate(images):  # on the host, where ragged images become a batch
        into[row, : image.shape[0], : image.shape[1]] = image
    return pixels.permute(0, 3, 1, 2), sizes


def build_train(augment: Sequence[Any], spec: InputSpec, proposals: bool = False) -> Transform:
    """Return the training transform: `data.augment`, then a resize to the spec's size where that is still to do.

    Raises UserError for an unknown transform or parameter and for transforms that boxes, or where `proposals` come
    with them thousands of boxes, cannot follow.
    """
    if not augment:
        return build_test(spec)
    from detkit.data.augment import Chain  # imports albumentations, which takes a second

    return Transform(spec, Chain(augment, spec, proposals))


def build_test(spec: InputSpec) -> Transform:
    """Return the transform for validation, test and detection: a bilinear resize."""
    return Transform(spec)
