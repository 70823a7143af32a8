"""Augmentation by albumentations: the only module that knows that library.

`data.augment` names SSD's transforms, defined here, and any of albumentations' that boxes can follow. Boxes travel in
albumentations' own format, fractions of the image, with the row number of the object as a fifth column; they are
clipped, and the empty ones dropped, before and after every transform. All randomness of a sample comes from its seed.
"""

import os
import random
import warnings
from collections.abc import Sequence
from inspect import Parameter, isclass, signature
from typing import Any

import numpy as np

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or the import asks the network for a newer version

import albumentations as A
import cv2
from albumentations.core.transforms_interface import Transform3D
from albumentations.core.type_definitions import Targets

from detkit.errors import UserError, did_you_mean
from detkit.structures import InputSpec

TRIALS = 50  # SSD, batch_sampler: max_trials
INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
COMPOSITIONS = ("OneOf", "RandomOrder", "Sequential", "SomeOf")

Size = tuple[int, int]


def _interval(name: str, value: Any, least: float, most: float = np.inf) -> tuple[float, float]:
    """Check a [low, high] parameter."""
    fits = isinstance(value, Sequence) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    if not fits or not least <= value[0] <= value[1] <= most:
        raise ValueError(f"{name} is {value!r}, but should be [low, high] between {least:g} and {most:g}")
    return float(value[0]), float(value[1])


def _at_most(name: str, value: Any, most: float) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r}, but should be between 0 and {most:g}")
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
        self.brightness = _at_most("brightness", brightness, 255)
        self.contrast = _interval("contrast", contrast, 0)
        self.saturation = _interval("saturation", saturation, 0)
        self.hue = _at_most("hue", hue, 90)

    def get_params(self) -> dict[str, Any]:
        draw = self.py_random
        half = [draw.random() < 0.5 for _ in range(5)]
        return {
            "brightness": round(draw.uniform(-self.brightness, self.brightness)) if half[0] else 0,
            "contrast": draw.uniform(*self.contrast) if half[1] else 1.0,
            "saturation": draw.uniform(*self.saturation) if half[2] else 1.0,
            "hue": draw.uniform(-self.hue, self.hue) if half[3] else 0.0,
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
    """SSD's zoom out: the photo somewhere on a canvas, `ratio` times as wide and high, of one colour.

    fill: RGB; by default the mean that the network subtracts.
    """

    _targets = (Targets.IMAGE, Targets.BBOXES)

    def __init__(
        self, ratio: Sequence[float] = (1.0, 4.0), fill: Sequence[float] | None = None, p: float = 0.5
    ) -> None:
        super().__init__(p=p)
        self.ratio = _interval("ratio", ratio, 1)
        if fill is not None and (len(fill) != 3 or not all(0 <= value <= 255 for value in fill)):
            raise ValueError(f"fill is {fill!r}, but should be [red, green, blue] between 0 and 255")
        self.colour = None if fill is None else tuple(map(float, fill))

    def use(self, spec: InputSpec) -> None:
        """Take the network's mean for the colour where none was given."""
        if self.colour is None:
            self.colour = tuple(float(min(255, max(0, round(mean * spec.divisor)))) for mean in spec.mean)

    def sample(self, size: Size) -> tuple[Size, Size]:
        """Draw the canvas (height, width) and where on it (top, left) a photo of `size` lies."""
        height, width = size
        ratio = self.py_random.uniform(*self.ratio)
        canvas = (int(height * ratio), int(width * ratio))
        top, left = (int(self.py_random.uniform(0, outer - inner + 1)) for outer, inner in zip(canvas, size))
        return canvas, (min(top, canvas[0] - height), min(left, canvas[1] - width))

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        canvas, place = self.sample(params["shape"][:2])
        return {"canvas": canvas, "place": place}

    def apply(self, img: np.ndarray, canvas: Size, place: Size, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.cut(img, place, (0, 0, canvas[1], canvas[0]))

    def cut(self, image: np.ndarray, place: Size, window: tuple[int, int, int, int]) -> np.ndarray:
        """Return the part `window` (x0, y0, x1, y1) of the canvas on which `image` lies at `place`."""
        assert self.colour is not None, "use(spec) comes first"
        (top, left), (x0, y0, x1, y1) = place, window
        bottom, right = top + image.shape[0], left + image.shape[1]
        edges = (max(top - y0, 0), max(y1 - bottom, 0), max(left - x0, 0), max(x1 - right, 0))
        if edges[0] >= y1 - y0 or edges[1] >= y1 - y0 or edges[2] >= x1 - x0 or edges[3] >= x1 - x0:
            return np.full((y1 - y0, x1 - x0, 3), self.colour, dtype=np.uint8)  # nothing of the photo is there
        part = image[max(y0 - top, 0) : y1 - top, max(x0 - left, 0) : x1 - left]
        # an isolated border: else cv2 would look at the pixels around the view `part` for its border
        kind = cv2.BORDER_CONSTANT | cv2.BORDER_ISOLATED
        return cv2.copyMakeBorder(part, *edges, kind, value=self.colour) if any(edges) else part

    def apply_to_bboxes(self, bboxes: np.ndarray, canvas: Size, place: Size, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _from_pixels(_to_pixels(bboxes, params["shape"]), canvas, place)


class IoUCrop(A.DualTransform):
    """SSD's crop (section 2.2; Caffe's batch_sampler), which Expand usually comes before.

    One of these is chosen evenly among those that can be had in 50 trials each: the whole image; any crop; a crop whose
    IoU with at least one object is at least .1, .3, .5, .7 or .9 (`min_iou`). A crop has `scale`, the root of its share
    of the image's area, and an aspect ratio of `ratio` times the image's. Objects whose centre lies in the crop stay,
    clipped to it.
    """

    _targets = (Targets.IMAGE, Targets.BBOXES)

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
        self.scale = _interval("scale", scale, 0.01, 1)
        self.ratio = _interval("ratio", ratio, 0.01)
        if not self.ratio[0] <= 1 <= self.ratio[1]:
            raise ValueError(f"ratio is {ratio!r}, but should hold 1, the image's own aspect ratio")

    @property
    def targets_as_params(self) -> list[str]:
        return ["bboxes"]

    def sample(self, size: Size, boxes: np.ndarray) -> tuple[int, int, int, int]:
        """Draw a window (x0, y0, x1, y1) of an image of `size` (height, width) with boxes (N, 4) in pixels."""
        draw = self.random_generator
        # The first possible kind of a random order is an even choice among the possible; most need not be tried
        for kind in draw.permutation(len(self.min_iou) + 2).tolist():
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
        """Draw TRIALS windows (TRIALS, 4), whole pixels."""
        height, width = size
        draw = self.random_generator.random((4, TRIALS))
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * draw[0]
        # neither side may be longer than the image's
        least, most = np.maximum(self.ratio[0], scale**2), np.minimum(self.ratio[1], scale**-2)
        root = np.sqrt(least + (most - least) * draw[1])
        w = np.maximum(scale * root * width, 1).astype(np.int64).clip(1, width)
        h = np.maximum(scale / root * height, 1).astype(np.int64).clip(1, height)
        x, y = (draw[2] * (width - w + 1)).astype(np.int64), (draw[3] * (height - h + 1)).astype(np.int64)
        return np.stack([x, y, x + w, y + h], 1)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        size = params["shape"][:2]
        return {"window": self.sample(size, _to_pixels(data["bboxes"], size)[:, :4])}

    def apply(self, img: np.ndarray, window: tuple[int, int, int, int], **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        x0, y0, x1, y1 = window
        return img[y0:y1, x0:x1]

    def apply_to_bboxes(self, bboxes: np.ndarray, window: tuple[int, int, int, int], **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.keep(_to_pixels(bboxes, params["shape"]), window)

    @staticmethod
    def keep(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
        """Boxes (N, 4+) in pixels whose centre is in the window -> fractions of the window."""
        x0, y0, x1, y1 = window
        x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        inside = boxes[(x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)]
        return _from_pixels(inside, (y1 - y0, x1 - x0), (-y0, -x0)).clip((0,) * 4 + (-np.inf,), (1,) * 4 + (np.inf,))


class RandomInterpolationResize(A.DualTransform):
    """SSD's stretch to the network's size by one of cv2's five interpolations, chosen evenly (Caffe's resize_param)."""

    _targets = (Targets.IMAGE, Targets.BBOXES)
    spec: InputSpec

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p=p)

    def use(self, spec: InputSpec) -> None:
        """Take the size from the network."""
        self.spec = spec

    def get_params(self) -> dict[str, Any]:
        return {"method": self.py_random.choice(INTERPOLATIONS)}

    def apply(self, img: np.ndarray, method: int, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cv2.resize(img, self.spec.size[::-1], interpolation=method)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        return bboxes


class Sample(A.DualTransform):
    """PhotometricDistort, Expand, IoUCrop and RandomInterpolationResize, or some of them, in one quick step.

    The draws are those of the transforms one after the other, but the canvas is never built, and only what the crop
    leaves of the photo is recoloured and resized. Without fill in the crop, or without a resize, the result is the very
    same. With both, the photo's edges are rounded to whole pixels of the output, and the boxes with them.
    """

    _targets = (Targets.IMAGE, Targets.BBOXES)

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
        place = (0, 0)
        # the order of the draws is that of the transforms one after the other
        colour = self.distort.get_params() if self.distort and self.distort.should_apply() else None
        if self.expand and self.expand.should_apply():
            canvas, place = self.expand.sample(size)
        boxes = _to_pixels(data["bboxes"], size)
        boxes[:, :4] += place[::-1] * 2
        window = self.crop.sample(canvas, boxes[:, :4]) if self.crop.should_apply() else (0, 0, *canvas[::-1])
        method = self.resize.get_params()["method"] if self.resize else None
        (top, left), (x0, y0, x1, y1) = place, window
        # what is left of the photo, in pixels of the window
        seen = (
            *(max(left - x0, 0), max(top - y0, 0)),
            *(min(left + size[1], x1) - x0, min(top + size[0], y1) - y0),
        )
        return {"colour": colour, "place": place, "window": window, "boxes": boxes, "method": method, "seen": seen}

    def _spans(self, params: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Columns and rows of the output that the photo fills, at least one of each."""
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
        (top, left), (x0, y0, x1, y1) = params["place"], params["window"]
        seen = params["seen"]
        width, height = seen[2] - seen[0], seen[3] - seen[1]
        out = (y1 - y0, x1 - x0) if self.resize is None else self.resize.spec.size
        if width <= 0 or height <= 0:  # the window holds nothing of the photo
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

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        window, seen = params["window"], params["seen"]
        boxes = self.crop.keep(params["boxes"], window)
        if self.resize is None or seen[2] <= seen[0] or seen[3] <= seen[1]:
            return boxes
        for axis, span in enumerate(self._spans(params)):
            # from the window's fractions to pixels, from the photo's edges to those of its span, to fractions again
            low, high = seen[axis], seen[axis + 2]
            pixels = boxes[:, axis:4:2] * (window[axis + 2] - window[axis])
            moved = span[0] + (pixels - low) * ((span[1] - span[0]) / (high - low))
            boxes[:, axis:4:2] = moved / self.resize.spec.size[1 - axis]
        return boxes


def _to_pixels(bboxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    boxes = bboxes.copy()
    boxes[:, :4] *= (shape[1], shape[0], shape[1], shape[0])
    return boxes


def _from_pixels(boxes: np.ndarray, size: Size, shift: Size) -> np.ndarray:
    """Boxes in pixels, moved by `shift` (down, right), as fractions of an image of `size` (height, width)."""
    boxes = boxes.copy()
    boxes[:, :4] += shift[::-1] * 2
    boxes[:, :4] /= (size[1], size[0]) * 2
    return boxes


def _iou(windows: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(M, 4), (N, 4) -> (M, N)."""
    low = np.maximum(windows[:, None, :2], boxes[:, :2])
    high = np.minimum(windows[:, None, 2:], boxes[:, 2:])
    inter = np.maximum(high - low, 0).prod(2)
    area = (windows[:, 2:] - windows[:, :2]).prod(1)[:, None] + (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return inter / np.maximum(area - inter, 1e-9)


OWN = {kind.__name__: kind for kind in (PhotometricDistort, Expand, IoUCrop, RandomInterpolationResize)}


class Chain:
    """The transforms of `data.augment`, called with an image, its boxes as fractions (N, 4), and a seed."""

    def __init__(self, augment: Sequence[Any], spec: InputSpec) -> None:
        self.transforms = _fuse([_build(item, spec) for item in augment])
        params = A.BboxParams("albumentations", clip=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that boxes pass by a chain which only recolours
            # wires what transforms find out about each other; the steps themselves are taken in __call__
            self.compose = A.Compose(self.transforms, bbox_params=params, is_check_shapes=False)

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, seed: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the image, the boxes (M, 4) that remain and their rows (M,)."""
        # One state for all transforms. Compose.set_random_seed would give each the same seed, and so let, say, the
        # flip happen exactly when the expansion does.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random((seed[0] << 64) | seed[1]))
        rows = np.arange(len(boxes), dtype=np.float64)
        data: dict[str, Any] = {"image": image, "bboxes": _tidy(np.concatenate([boxes, rows[:, None]], 1))}
        for transform in self.transforms:
            data = _run(transform, data)
        boxes = data["bboxes"]
        return data["image"], boxes[:, :4], boxes[:, 4].astype(np.int64)


def _tidy(boxes: np.ndarray) -> np.ndarray:
    """Clip boxes (N, 5) to the image and drop the empty ones."""
    if not len(boxes):
        return np.zeros((0, 5))
    boxes = boxes.astype(np.float64)
    boxes[:, :4] = boxes[:, :4].clip(0, 1)
    return boxes[(boxes[:, 2:4] > boxes[:, :2]).all(1)]


def _run(transform: Any, data: dict[str, Any], force: bool = False) -> dict[str, Any]:
    name = type(transform).__name__
    try:
        data = transform(force_apply=True, **data) if force else transform(**data)
    except Exception as error:
        if name in OWN or name == Sample.__name__:
            raise
        raise UserError(f"data.augment: {name}: {' '.join(str(error).split())}") from error
    image = data["image"]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"data.augment: {name} makes {image.dtype} images of shape {image.shape}; it should leave RGB in uint8: "
            "the network normalises by itself"
        )
    data["bboxes"] = _tidy(data["bboxes"])
    return data


def _fuse(transforms: list[Any]) -> list[Any]:
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


def _known() -> dict[str, type]:
    """Every transform that a config can name."""
    found = {
        name: kind
        for name in dir(A)
        if isclass(kind := getattr(A, name))
        and issubclass(kind, A.ImageOnlyTransform | A.DualTransform)
        and not issubclass(kind, Transform3D)
        and kind not in (A.ImageOnlyTransform, A.DualTransform)
    }
    return found | {name: getattr(A, name) for name in COMPOSITIONS} | OWN


def _build(item: Any, spec: InputSpec) -> Any:
    """Make the transform of one entry of `data.augment`: `Name`, or {Name: {parameter: value}}."""
    if isinstance(item, str):
        item = {item: {}}
    if not isinstance(item, dict) or len(item) != 1:
        raise UserError(f"data.augment: {item!r} is not {{TransformName: {{parameters}}}}")
    (name, values), known = next(iter(item.items())), _known()
    values = {} if values is None else values
    if name not in known:
        raise UserError(f"data.augment: unknown transform {name!r}{_nearest(name, known)}")
    if not isinstance(values, dict):
        raise UserError(f"data.augment: {name}: {values!r} is not a mapping of parameters")
    kind = known[name]
    _check_boxes_follow(name, kind)
    accepted = {
        key
        for key, parameter in signature(kind.__init__).parameters.items()
        if key != "self" and parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    }
    for key in values:
        if key not in accepted:
            raise UserError(f"data.augment: {name}: unknown parameter {key!r}{did_you_mean(str(key), accepted)}")
    if name in COMPOSITIONS:
        inner = values.get("transforms")
        if not isinstance(inner, list) or not inner:
            raise UserError(f"data.augment: {name}: transforms should be a list of transforms")
        values = {**values, "transforms": [_build(part, spec) for part in inner]}
    transform = _construct(name, kind, values)
    if isinstance(transform, Expand | RandomInterpolationResize):
        transform.use(spec)
    if name not in COMPOSITIONS:
        _try(transform)
    return transform


def _nearest(name: Any, known: dict[str, type]) -> str:
    hint = did_you_mean(str(name), known)
    return hint if "did you mean" in hint else f"; detkit's own: {', '.join(OWN)}; else see albumentations' list"


def _check_boxes_follow(name: str, kind: type) -> None:
    if name in COMPOSITIONS or issubclass(kind, A.ImageOnlyTransform):
        return
    targets = getattr(kind, "_targets", ())
    if Targets.BBOXES not in (targets if isinstance(targets, tuple) else (targets,)):
        raise UserError(f"data.augment: {name} moves pixels but not boxes, so it cannot be used for detection")


def _construct(name: str, kind: type, values: dict[str, Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # albumentations warns of bad parameters and goes on without them
        try:
            return kind(**values)
        except (ValueError, TypeError, UserWarning) as error:
            cause = error.__cause__
            details = cause.errors() if cause is not None and hasattr(cause, "errors") else None  # pyright: ignore
            if details:
                where = ".".join(map(str, details[0]["loc"])) or "parameters"
                reason = f"{where}: {details[0]['msg']}"
            else:
                reason = " ".join(str(error).split())
            raise UserError(f"data.augment: {name}: {reason}") from None


def _try(transform: Any) -> None:
    """Run a transform once on a made-up photo, so that one that cannot work fails before training starts."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    boxes = np.array([(0.1, 0.1, 0.6, 0.6, 0.0), (0.4, 0.3, 0.9, 0.9, 1.0)])
    transform.set_random_state(np.random.default_rng(0), random.Random(0))
    _run(transform, {"image": image, "bboxes": boxes}, force=True)
