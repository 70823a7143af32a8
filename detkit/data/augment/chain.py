"""From `data.augment` to a chain of transforms that can be called."""

import random
import warnings
from collections.abc import Callable, Sequence
from functools import reduce
from inspect import Parameter, isclass, signature
from itertools import groupby
from typing import Any

import albumentations as A
import numpy as np
from albumentations.core.transforms_interface import Transform3D
from albumentations.core.type_definitions import Targets

from detkit.data.augment.combine import Combination, MixUp, Mosaic
from detkit.data.augment.sample import Sample, fuse
from detkit.data.augment.ssd import Expand, IoUCrop, PhotometricDistort, RandomInterpolationResize
from detkit.errors import UserError, did_you_mean
from detkit.structures import InputSpec

COMPOSITIONS = ("OneOf", "RandomOrder", "Sequential", "SomeOf")
# Albumentations' transforms that proposals cannot pass: those whose random numbers depend on all boxes, and those that
# cut boxes up or move each by drawing a mask of it, which for thousands takes seconds.
LOOKS_AT_BOXES = ("AtLeastOneBBoxRandomCrop", "BBoxSafeRandomCrop", "RandomSizedBBoxSafeCrop")
DRAWS_MASKS = (
    *("ElasticTransform", "GridDistortion", "GridElasticDeform", "Morphological", "OpticalDistortion"),
    *("PiecewiseAffine", "PixelDropout", "RandomGridShuffle", "ThinPlateSpline"),
)
OWN = {kind.__name__: kind for kind in (PhotometricDistort, Expand, IoUCrop, RandomInterpolationResize, Mosaic, MixUp)}

Seed = tuple[int, ...]
# Draws another image of the data set: (H, W, 3) uint8, its boxes (N, 4) as fractions, how many of them are objects, and
# their masks (N, H, W) where there are any
Other = Callable[[np.random.Generator], tuple[Any, ...]]


class Chain:
    """The transforms of `data.augment`, called with an image, its boxes as fractions (N, 4), and a seed.

    proposals: whether proposals will be among the boxes, which some transforms cannot have. stages: combinations of
    images, and the transforms of one image between them.
    """

    def __init__(self, augment: Sequence[Any], spec: InputSpec, proposals: bool = False) -> None:
        transforms = [_build(item, spec) for item in augment]
        if proposals:
            _check_proposals_follow(transforms)
        self.stages: list[Combination | _Transforms] = []
        for combined, group in groupby(transforms, lambda transform: isinstance(transform, Combination)):
            members = [*group]
            self.stages += members if combined else [_Transforms(members)]

    def __call__(
        self, image: np.ndarray, boxes: np.ndarray, seed: Seed, objects: int, other: Other | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the image, the boxes (M, 4) that remain and their rows (M,), see `run`, which has masks as well."""
        return self.run(image, boxes, None, seed, objects, other)[:3]

    def run(
        self,
        image: np.ndarray,
        boxes: np.ndarray,
        masks: np.ndarray | None,
        seed: Seed,
        objects: int,
        other: Other | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the image, the boxes (M, 4) that remain, their rows (M,), objects before proposals, and their masks.

        masks: (N, H, W) uint8, of objects without proposals; those that are returned are (M, h, w). From row `objects`
        on boxes are proposals, whose rows come back as -1 - row. other: where a combination of images gets others
        from; their boxes are numbered on, in the order in which they were got.
        """
        count = 0

        def begin(
            image: np.ndarray, boxes: np.ndarray, objects: int, masks: np.ndarray | None = None
        ) -> dict[str, Any]:
            nonlocal count
            rows = np.arange(count, count + len(boxes), dtype=np.float64)
            rows[objects:] = -1 - rows[objects:]  # so that transforms tell them from objects, see `only_objects`
            count += len(boxes)
            # a mask stays where its row says, whatever boxes are dropped; albumentations takes no empty list
            known = {} if masks is None or not len(masks) else {"masks": masks}
            return {"image": image, "bboxes": _tidy(np.concatenate([boxes, rows[:, None]], 1)), **known}

        def run(stages: Sequence[Any], data: dict[str, Any], seed: Seed) -> dict[str, Any]:
            for number, stage in enumerate(stages, 1):
                own = (*seed, number)  # numpy could not tell a 0 at its end apart
                if not isinstance(stage, Combination):
                    data = stage(data, seed if number == 1 else own)
                    continue
                random = np.random.default_rng(own)
                if random.random() < stage.p:
                    assert other is not None, f"{type(stage).__name__} takes other images"
                    before = stages[: number - 1]  # which other images go through, too
                    parts = [run(before, begin(*other(random)), (*own, part + 1)) for part in range(stage.others)]
                    data = stage([data, *parts], random)
                    data["bboxes"] = _tidy(data["bboxes"])
            return data

        data = run(self.stages, begin(image, boxes, objects, masks), seed)
        image, rows = data["image"], data["bboxes"][:, 4].astype(np.int64)
        if masks is not None:
            masks = data["masks"][rows] if "masks" in data else np.zeros((0, *image.shape[:2]), np.uint8)
        return image, data["bboxes"][:, :4], rows, masks


class _Transforms:
    """Transforms of one image, called one after the other."""

    def __init__(self, transforms: list[Any]) -> None:
        self.transforms = fuse(transforms)
        params = A.BboxParams("albumentations", clip=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that boxes pass by a chain which only recolours
            # wires what transforms find out about each other; the steps themselves are taken in __call__
            self.compose = A.Compose(self.transforms, bbox_params=params, is_check_shapes=False)

    def __call__(self, data: dict[str, Any], seed: Seed) -> dict[str, Any]:
        # One state for all transforms. Compose.set_random_seed would give each the same seed, and so let, say, the
        # flip happen exactly when the expansion does.
        self.compose.set_random_state(
            np.random.default_rng(seed), random.Random(reduce(lambda high, low: (high << 64) | low, seed))
        )
        for transform in self.transforms:
            data = _run(transform, data)
        return data


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
        parts = [_build(part, spec) for part in inner]
        for part in parts:
            if isinstance(part, Combination):
                raise UserError(
                    f"data.augment: {type(part).__name__} takes other images, so it cannot stand within {name}, but "
                    "beside it"
                )
        values = {**values, "transforms": parts}
    transform = _construct(name, kind, values)
    if isinstance(transform, Expand | RandomInterpolationResize):
        try:
            transform.use(spec)
        except ValueError as error:
            raise UserError(f"data.augment: {name}: {error}") from None
    if name not in COMPOSITIONS and not isinstance(transform, Combination):
        _try(transform)
    return transform


def _nearest(name: Any, known: dict[str, type]) -> str:
    hint = did_you_mean(str(name), known)
    return hint if "did you mean" in hint else f"; detkit's own: {', '.join(OWN)}; else see albumentations' list"


def _check_boxes_follow(name: str, kind: type) -> None:
    if name in COMPOSITIONS or issubclass(kind, A.ImageOnlyTransform | Combination):
        return
    targets = getattr(kind, "_targets", ())
    if Targets.BBOXES not in (targets if isinstance(targets, tuple) else (targets,)):
        raise UserError(f"data.augment: {name} moves pixels but not boxes, so it cannot be used for detection")


def _check_proposals_follow(transforms: Sequence[Any]) -> None:
    for transform in transforms:
        name = type(transform).__name__
        if name in COMPOSITIONS:
            _check_proposals_follow(transform.transforms)
        for refused, reason in (
            (LOOKS_AT_BOXES, "would take proposals for objects"),
            (DRAWS_MASKS, "cannot move thousands of boxes"),
        ):
            if name in refused:
                raise UserError(f"data.augment: {name} {reason}, so it cannot be used with data.proposals")


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
    """Run a transform once on a made-up image, so that one that cannot work fails before training starts."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    boxes = np.array([(0.1, 0.1, 0.6, 0.6, 0.0), (0.4, 0.3, 0.9, 0.9, 1.0)])
    transform.set_random_state(np.random.default_rng(0), random.Random(0))
    _run(transform, {"image": image, "bboxes": boxes}, force=True)
