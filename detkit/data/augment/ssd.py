"""The transforms of SSD's published augmentation (section 2.2, and the authors' code)."""

from collections.abc import Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from detkit.data.transforms import resize_masks
from detkit.structures import InputSpec

TRIALS = 50  # SSD, batch_sampler: max_trials
FULL = 1e-6  # of a pixel
INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)

Size = tuple[int, int]


def interval(name: str, value: Any, minimum: float, maximum: float = np.inf) -> tuple[float, float]:
    """Check a [low, high] parameter; ValueError says what is wrong."""
    fits = isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    if not fits or not minimum <= value[0] <= value[1] <= maximum:
        raise ValueError(f"{name} is {value!r}, but should be [low, high] between {minimum:g} and {maximum:g}")
    return float(value[0]), float(value[1])


def at_most(name: str, value: Any, maximum: float) -> float:
    """Check a parameter between 0 and `maximum`; ValueError says what is wrong."""
    if not isinstance(value, int | float) or not 0 <= value <= maximum:
        raise ValueError(f"{name} is {value!r}, but should be between 0 and {maximum:g}")
    return float(value)


class PhotometricDistort(A.ImageOnlyTransform):
    """SSD's colour distortion (Caffe's distort_param): each part by itself with probability 1/2.

    brightness: added, U[-brightness, brightness] of 255. contrast: factor, U. saturation: factor in HSV, U. hue:
    degrees / 2, U[-hue, hue]. Contrast comes second or last, at random.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: float = 18,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.brightness = at_most("brightness", brightness, 255)
        self.contrast = interval("contrast", contrast, 0)
        self.saturation = interval("saturation", saturation, 0)
        self.hue = at_most("hue", hue, 90)

    def get_params(self) -> dict[str, Any]:
        rng = self.py_random
        half = [rng.random() < 0.5 for _ in range(5)]
        return {
            "brightness": round(rng.uniform(-self.brightness, self.brightness)) if half[0] else 0,
            "contrast": rng.uniform(*self.contrast) if half[1] else 1.0,
            "saturation": rng.uniform(*self.saturation) if half[2] else 1.0,
            "hue": rng.uniform(-self.hue, self.hue) if half[3] else 0.0,
            "contrast_last": half[4],
        }

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return distort(img, **{key: params[key] for key in _DISTORTIONS})


_DISTORTIONS = ("brightness", "contrast", "saturation", "hue", "contrast_last")


def distort(
    image: np.ndarray, brightness: int, contrast: float, saturation: float, hue: float, contrast_last: bool
) -> np.ndarray:
    """Recolour (H, W, 3) RGB uint8; every step saturates, as in Caffe. Returns a new array unless nothing changes."""
    if brightness > 0:
        image = cv2.add(image, np.full(image.shape, brightness, np.uint8))
    elif brightness < 0:
        image = cv2.subtract(image, np.full(image.shape, -brightness, np.uint8))
    if contrast != 1 and not contrast_last:
        image = cv2.convertScaleAbs(image, alpha=contrast)
    shift = round(hue * 256 / 180) % 256
    if saturation != 1 or shift:
        # in the "full" HSV a turn of the hue is 256 steps, so that uint8 arithmetic wraps it
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
        if saturation != 1:
            cv2.insertChannel(cv2.convertScaleAbs(cv2.extractChannel(hsv, 1), alpha=saturation), hsv, 1)
        if shift:
            lines = hsv.reshape(len(hsv), -1)  # whole lines: numpy is slow where the innermost axis has 3 items
            lines += np.tile(np.array([shift, 0, 0], dtype=np.uint8), hsv.shape[1])
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    if contrast != 1 and contrast_last:
        image = cv2.convertScaleAbs(image, alpha=contrast)
    return image


class Expand(A.DualTransform):
    """SSD's zoom out: the image somewhere on a canvas, `ratio` times as wide and high, of one colour.

    fill: RGB; by default the mean that the network subtracts.
    """

    _targets = (Targets.IMAGE, Targets.BBOXES, Targets.MASK)

    def __init__(
        self, ratio: Sequence[float] = (1.0, 4.0), fill: Sequence[float] | None = None, p: float = 0.5
    ) -> None:
        super().__init__(p=p)
        self.ratio = interval("ratio", ratio, 1)
        if fill is not None and (len(fill) != 3 or not all(0 <= value <= 255 for value in fill)):
            raise ValueError(f"fill is {fill!r}, but should be [red, green, blue] between 0 and 255")
        self.colour = None if fill is None else tuple(map(float, fill))

    def use(self, spec: InputSpec) -> None:
        """Take the network's mean for the colour where none was given."""
        if self.colour is None:
            self.colour = tuple(float(min(255, max(0, round(mean * spec.divisor)))) for mean in spec.mean)

    def sample(self, size: Size) -> tuple[Size, Size]:
        """Sample the canvas (height, width) and where on it (top, left) an image of `size` lies."""
        height, width = size
        ratio = self.py_random.uniform(*self.ratio)
        canvas = (int(height * ratio), int(width * ratio))
        top, left = (int(self.py_random.uniform(0, outer - inner + 1)) for outer, inner in zip(canvas, size))
        return canvas, (min(top, canvas[0] - height), min(left, canvas[1] - width))

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        canvas, offset = self.sample(params["shape"][:2])
        return {"canvas": canvas, "offset": offset}

    def apply(self, img: np.ndarray, canvas: Size, offset: Size, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.cut(img, offset, (0, 0, canvas[1], canvas[0]))

    def cut(self, image: np.ndarray, offset: Size, window: tuple[int, int, int, int]) -> np.ndarray:
        """Return the part `window` (x0, y0, x1, y1) of the canvas on which `image` lies at `offset`."""
        assert self.colour is not None, "use(spec) comes first"
        (top, left), (x0, y0, x1, y1) = offset, window
        bottom, right = top + image.shape[0], left + image.shape[1]
        edges = (max(top - y0, 0), max(y1 - bottom, 0), max(left - x0, 0), max(x1 - right, 0))
        if edges[0] >= y1 - y0 or edges[1] >= y1 - y0 or edges[2] >= x1 - x0 or edges[3] >= x1 - x0:
            return np.full((y1 - y0, x1 - x0, 3), self.colour, dtype=np.uint8)  # nothing of the image is there
        part = image[max(y0 - top, 0) : y1 - top, max(x0 - left, 0) : x1 - left]
        # an isolated border: else cv2 would look at the pixels around the view `part` for its border
        kind = cv2.BORDER_CONSTANT | cv2.BORDER_ISOLATED
        return cv2.copyMakeBorder(part, *edges, kind, value=self.colour) if any(edges) else part

    def apply_to_bboxes(self, bboxes: np.ndarray, canvas: Size, offset: Size, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return from_pixels(to_pixels(bboxes, params["shape"]), canvas, offset)

    def apply_to_masks(self, masks: np.ndarray, canvas: Size, offset: Size, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        (top, left), (height, width) = offset, masks.shape[1:]
        out = np.zeros((len(masks), *canvas), np.uint8)
        out[:, top : top + height, left : left + width] = masks
        return out


class IoUCrop(A.DualTransform):
    """SSD's crop (section 2.2; Caffe's batch_sampler), which Expand usually comes before.

    One of these is chosen evenly among those that can be had in 50 trials each: the whole image; any crop; a crop whose
    IoU with at least one object is at least .1, .3, .5, .7 or .9 (`min_iou`). A crop has `scale`, the root of its share
    of the image's area, and an aspect ratio of `ratio` times the image's. Objects whose centre lies in the crop stay,
    clipped to it.
    """

    _targets = (Targets.IMAGE, Targets.BBOXES, Targets.MASK)

    def __init__(
        self,
        min_iou: Sequence[float] = (0.1, 0.3, 0.5, 0.7, 0.9),
        scale: Sequence[float] = (0.3, 1.0),
        ratio: Sequence[float] = (0.5, 2.0),
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        if not isinstance(min_iou, Sequence) or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in min_iou):
            raise ValueError(f"min_iou is {min_iou!r}, but should be a list of numbers between 0 and 1")
        self.min_iou = tuple(min_iou)
        self.scale = interval("scale", scale, 0.01, 1)
        self.ratio = interval("ratio", ratio, 0.01)
        if not self.ratio[0] <= 1 <= self.ratio[1]:
            raise ValueError(f"ratio is {ratio!r}, but should hold 1, the image's own aspect ratio")

    @property
    def targets_as_params(self) -> list[str]:
        return ["bboxes"]

    def sample(self, size: Size, boxes: np.ndarray) -> tuple[int, int, int, int]:
        """Sample a window (x0, y0, x1, y1) of an image of `size` (height, width) with boxes (N, 4) in pixels."""
        rng = self.random_generator
        # The first possible kind of a random order is an even choice among the possible; most need not be tried
        for kind in rng.permutation(len(self.min_iou) + 2).tolist():
            if kind == 0:
                break
            windows = self._windows(size)
            if kind == 1:
                return tuple(windows[0].tolist())
            good = (_iou(windows, boxes) >= self.min_iou[kind - 2]).any(1)
            if good.any():
                return tuple(windows[good.argmax()].tolist())
        return (0, 0, size[1], size[0])

    def _windows(self, size: Size) -> np.ndarray:
        """Sample TRIALS windows (TRIALS, 4), whole pixels."""
        height, width = size
        uniform = self.random_generator.random((4, TRIALS))
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * uniform[0]
        # No side may be longer than the image's: such a ratio is clamped, as in the authors' code, so that of every six
        # windows one is as wide as the image. FULL makes up for what rounding takes from it.
        ratio = self.ratio[0] + (self.ratio[1] - self.ratio[0]) * uniform[1]
        root = np.sqrt(ratio.clip(scale**2, scale**-2))
        w = (scale * root * width + FULL).astype(np.int64).clip(1, width)
        h = (scale / root * height + FULL).astype(np.int64).clip(1, height)
        x, y = (uniform[2] * (width - w + 1)).astype(np.int64), (uniform[3] * (height - h + 1)).astype(np.int64)
        return np.stack([x, y, x + w, y + h], 1)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        size = params["shape"][:2]
        return {"window": self.sample(size, to_pixels(only_objects(data["bboxes"]), size)[:, :4])}

    def apply(self, img: np.ndarray, window: tuple[int, int, int, int], **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        x0, y0, x1, y1 = window
        return img[y0:y1, x0:x1]

    def apply_to_bboxes(self, bboxes: np.ndarray, window: tuple[int, int, int, int], **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.keep(to_pixels(bboxes, params["shape"]), window)

    def apply_to_masks(self, masks: np.ndarray, window: tuple[int, int, int, int], **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        x0, y0, x1, y1 = window
        return masks[:, y0:y1, x0:x1]

    @staticmethod
    def keep(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
        """Boxes (N, 5) in pixels whose centre is in the window, and all proposals -> fractions of the window, clipped.

        A proposal outside of the window becomes empty.
        """
        x0, y0, x1, y1 = window
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        inside = boxes[((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)) | (boxes[:, 4] < 0)]
        return from_pixels(inside, (y1 - y0, x1 - x0), (-y0, -x0)).clip((0,) * 4 + (-np.inf,), (1,) * 4 + (np.inf,))


class RandomInterpolationResize(A.DualTransform):
    """SSD's stretch to the network's size by one of cv2's five interpolations, chosen evenly (Caffe's resize_param)."""

    _targets = (Targets.IMAGE, Targets.BBOXES, Targets.MASK)
    spec: InputSpec

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p=p)

    def use(self, spec: InputSpec) -> None:
        """Take the size from the network; ValueError where that keeps the aspect ratio."""
        if spec.resize != "stretch":
            raise ValueError("it stretches to one size, but this network keeps the aspect ratio")
        self.spec = spec

    def get_params(self) -> dict[str, Any]:
        return {"method": self.py_random.choice(INTERPOLATIONS)}

    def apply(self, img: np.ndarray, method: int, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cv2.resize(img, self.spec.size[::-1], interpolation=method)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return bboxes

    def apply_to_masks(self, masks: np.ndarray, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return resize_masks(masks, self.spec.size)


def only_objects(bboxes: np.ndarray) -> np.ndarray:
    """Boxes (N, 5) without the proposals, whose row numbers are negative."""
    return bboxes[bboxes[:, 4] >= 0]


def to_pixels(bboxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    boxes = bboxes.copy()
    boxes[:, :4] *= (shape[1], shape[0], shape[1], shape[0])
    return boxes


def from_pixels(boxes: np.ndarray, size: Size, shift: Size) -> np.ndarray:
    """Boxes in pixels, moved by `shift` (down, right), as fractions of an image of `size` (height, width)."""
    boxes = boxes.copy()
    boxes[:, :4] += shift[::-1] * 2
    boxes[:, :4] /= (size[1], size[0]) * 2
    return boxes


def _iou(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(M, 4), (N, 4) -> (M, N), in numpy: for so few boxes ops.box_iou takes four times as long."""
    low = np.maximum(windows[:, None, :2], boxes[:, :2])
    high = np.minimum(windows[:, None, 2:], boxes[:, 2:])
    inter = np.maximum(high - low, 0).prod(2)
    area = (windows[:, 2:] - windows[:, :2]).prod(1)[:, None] + (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return inter / np.maximum(area - inter, 1e-9)
