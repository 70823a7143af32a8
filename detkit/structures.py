"""What flows through detkit: validated dataclasses of batched tensors.

Boxes are float32 continuous `xyxy` in pixels (a pixel spans [x, x + 1)); labels are 0..C-1 and -1 marks padding;
`ignore` marks VOC difficult and COCO crowd objects.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn


def _expect(owner: object, name: str, shape: tuple[int | None, ...], dtype: torch.dtype | None = None) -> None:
    """Raise ValueError unless the field's shape fits (None = any size); reads no tensor values, so never syncs."""
    tensor: Tensor = getattr(owner, name)
    fits = tensor.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, tensor.shape))
    if not fits:
        expected = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{type(owner).__name__}.{name}: expected shape ({expected}), got {tuple(tensor.shape)}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{type(owner).__name__}.{name}: expected {dtype}, got {tensor.dtype}")


def _expect_extra(owner: object, extra: Mapping[str, Tensor], shape: Sequence[int]) -> None:
    """Raise ValueError unless every extra field begins with this shape."""
    for name, tensor in extra.items():
        if tensor.shape[: len(shape)] != tuple(shape):
            expected = ", ".join(map(str, shape))
            raise ValueError(
                f"{type(owner).__name__}.extra[{name!r}]: expected shape ({expected}, ...), got {tuple(tensor.shape)}"
            )


# Marks on fields, in their metadata
LABELS = {"padding": -1}  # what stands for no object; in all other fields 0, or False, does
SHARED = {"shared": True}  # the same for all rows of a batch, such as the names of the classes
OF_IMAGES = {"of_images": True}  # (B, ...), where the other fields are (B, N, ...)


class Batched:
    """A frozen dataclass whose fields share their first dimension, the batch; all methods work field by field.

    A field is a tensor, another Batched, a tuple with an item for each row, a dict, list or tuple of these, or None.
    Whatever else a field holds stays as it is. A subclass's own fields follow without a line of code.
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with `function` applied to every tensor."""
        values = {name: _map(getattr(self, name), function) for name in _names(self)}
        return replace(self, **values)  # pyright: ignore[reportArgumentType]

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on `device`; from pinned memory the copy to a GPU does not block."""
        # towards the CPU it must: what reads the copy next does not wait for the GPU
        wait = torch.device(device).type == "cpu"
        return self.map(lambda tensor: tensor.to(device, non_blocking=not wait))

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory."""
        return self.map(Tensor.pin_memory)

    def part(self, rows: slice | Tensor) -> Self:
        """Return some rows of the batch: a slice, or an index (n,) or mask of rows.

        Tensors are views where `rows` is a slice. An index on a GPU costs a sync where a field is a tuple.
        """
        shared = {item.name for item in fields(self) if item.metadata.get("shared")}  # pyright: ignore[reportArgumentType]
        values = {name: _part(getattr(self, name), rows) for name in _names(self) if name not in shared}
        return replace(self, **values)  # pyright: ignore[reportArgumentType]

    @classmethod
    def cat(cls, items: Sequence[Self]) -> Self:
        """Join batches, which are padded to a common size where they differ, such as in their number of objects.

        Raises ValueError where only some have an optional field, or a shared field differs.
        """
        if not items:
            raise ValueError(f"{cls.__name__}.cat: no batches to join")
        values: dict[str, Any] = {}
        for item in fields(items[0]):  # pyright: ignore[reportArgumentType]
            where = f"{cls.__name__}.{item.name}"
            column = [getattr(one, item.name) for one in items]
            if item.metadata.get("shared"):
                if any(value != column[0] for value in column):
                    raise ValueError(f"{where}: cannot join batches in which it differs")
                values[item.name] = column[0]
            else:
                values[item.name] = _cat(where, column, item.metadata.get("padding", 0))
        return replace(items[0], **values)  # pyright: ignore[reportArgumentType]


class BatchedObjects(Batched):
    """A batch whose tensors are (B, N, ...): N objects, boxes or proposals of each image, some of them padding."""

    def take(self, index: Tensor) -> Self:
        """Return the objects (B, K) that `index`, (B, K) int64, names of each image; those at -1 are padding."""
        values = {}
        for item in fields(self):  # pyright: ignore[reportArgumentType]
            if not item.metadata.get("of_images"):
                padding = item.metadata.get("padding", 0)
                function = partial(_take, index=index, padding=padding)
                values[item.name] = _map(getattr(self, item.name), function)
        return replace(self, **values)  # pyright: ignore[reportArgumentType]


def _names(batch: Batched) -> list[str]:
    return [item.name for item in fields(batch)]  # pyright: ignore[reportArgumentType]


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Batched):
        return value.map(function)
    if isinstance(value, Mapping):
        return {key: _map(item, function) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(item, function) for item in value)
    return value


def _part(value: Any, rows: slice | Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, Batched):
        return value.part(rows)
    if isinstance(value, Mapping):
        return {key: _part(item, rows) for key, item in value.items()}
    if type(value) in (list, tuple):
        if any(isinstance(item, Tensor | Batched) for item in value):
            return type(value)(_part(item, rows) for item in value)
        if isinstance(rows, slice):
            return value[rows]
        return type(value)(value[row] for row in torch.arange(len(value))[rows.cpu()].tolist())
    return value


def _cat(where: str, values: Sequence[Any], padding: int) -> Any:
    first = values[0]
    if any((value is None) != (first is None) for value in values):
        raise ValueError(f"{where}: cannot join batches of which only some have it")
    if isinstance(first, Tensor):
        return _cat_tensors(values, padding)
    if isinstance(first, Batched):
        return type(first).cat(values)
    if isinstance(first, Mapping):
        if any(value.keys() != first.keys() for value in values):
            raise ValueError(f"{where}: cannot join batches with other names in it")
        return {key: _cat(f"{where}[{key!r}]", [value[key] for value in values], padding) for key in first}
    if type(first) in (list, tuple):
        if any(isinstance(item, Tensor | Batched) for item in first):
            return type(first)(_cat(where, column, padding) for column in zip(*values, strict=True))
        return type(first)(item for value in values for item in value)
    return first


def _cat_tensors(tensors: Sequence[Tensor], padding: int) -> Tensor:
    """Join along the first dimension, padded at the end of the others."""
    sizes = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [size - length for size, length in zip(sizes, tensor.shape[1:])]
        if any(missing):
            # torch.nn.functional.pad wants (before, after) of each dimension, the last one first
            amounts = [amount for size in reversed(missing) for amount in (0, size)]
            tensor = nn.functional.pad(tensor, amounts, value=padding)
        padded.append(tensor)
    return torch.cat(padded)


def _take(tensor: Tensor, index: Tensor, padding: int) -> Tensor:
    """Gather (B, N, ...) at (B, K) -> (B, K, ...), `padding` where the index is -1."""
    shape = (*index.shape, *tensor.shape[2:])
    if tensor.shape[1] == 0:
        return tensor.new_full(shape, padding)
    index = index.reshape(*index.shape, *[1] * (tensor.ndim - 2)).expand(shape)
    return tensor.gather(1, index.clamp(min=0)).masked_fill(index < 0, padding)


@dataclass(frozen=True)
class Proposals(BatchedObjects):
    """Regions of a batch that may hold an object, padded, in network-input pixels.

    boxes: (B, R, 4), 0 where padded; valid: (B, R) bool, False for padding; scores: (B, R), 0 where padded, or None.
    """

    boxes: Tensor
    valid: Tensor
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        _expect(self, "valid", (None, None), torch.bool)
        _expect(self, "boxes", (*self.valid.shape, 4), torch.float32)
        if self.scores is not None:
            _expect(self, "scores", tuple(self.valid.shape), torch.float32)

    def __len__(self) -> int:
        return len(self.valid)

    @classmethod
    def pad(
        cls, boxes: Sequence[Tensor], scores: Sequence[Tensor] | None = None, count: int | None = None
    ) -> "Proposals":
        """Stack the boxes (r, 4), and the scores (r,), of each image.

        They are padded to the largest r (at least 1), or cut and padded to `count`.
        """
        count = max([1, *map(len, boxes)]) if count is None else count
        # a batch of no images, so that there is always something to join, and `count` regions
        batches = [_proposals(torch.zeros(0, count, 4), None if scores is None else torch.zeros(0, count))]
        for row, image_boxes in enumerate(boxes):  # on the host, where ragged lists become a batch
            image_scores = None if scores is None else scores[row][None, :count].float()
            batches.append(_proposals(image_boxes[None, :count].float(), image_scores))
        return Proposals.cat(batches)


def _proposals(boxes: Tensor, scores: Tensor | None) -> Proposals:
    """Proposals without padding."""
    return Proposals(boxes, torch.ones(boxes.shape[:2], dtype=torch.bool), scores)


@dataclass(frozen=True)
class Images(Batched):
    """A batch of RGB images, padded at the right and bottom to one size.

    pixels: (B, 3, H, W) uint8. sizes: (B, 2) int64, height and width of each image's valid part.
    original: (B, 2) int64, height and width of the image it was resized from. ids: one name an image.
    proposals: stored regions of the images, for detectors that classify such.
    """

    pixels: Tensor
    sizes: Tensor
    original: Tensor
    ids: tuple[str, ...]
    proposals: Proposals | None = None

    def __post_init__(self) -> None:
        batch = len(self.ids)
        _expect(self, "pixels", (batch, 3, None, None), torch.uint8)
        _expect(self, "sizes", (batch, 2), torch.int64)
        _expect(self, "original", (batch, 2), torch.int64)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Targets(BatchedObjects):
    """The objects of a batch, padded.

    boxes: (B, N, 4); labels: (B, N) int64, -1 for padding; ignore: (B, N) bool. extra: (B, N, ...) fields of a user's
    own, such as track ids; augmentation drops and keeps their rows with the boxes, and leaves their values alone.
    """

    boxes: Tensor
    labels: Tensor = field(metadata=LABELS)
    ignore: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        batch, objects = self.labels.shape if self.labels.ndim == 2 else (None, None)
        _expect(self, "labels", (None, None), torch.int64)
        _expect(self, "boxes", (batch, objects, 4), torch.float32)
        _expect(self, "ignore", (batch, objects), torch.bool)
        _expect_extra(self, self.extra, self.labels.shape)

    @property
    def valid(self) -> Tensor:
        """(B, N) bool: True for objects, False for padding."""
        return self.labels >= 0

    @classmethod
    def pad(
        cls, objects: Iterable[tuple[Tensor, Tensor, Tensor]], extra: Sequence[Mapping[str, Tensor]] = ()
    ) -> "Targets":
        """Stack per-image (boxes (n, 4), labels (n,), ignore (n,)), padded to the largest n (at least 1).

        extra: of each image its extra fields, (n, ...), or () for none.
        """
        nothing = {name: value.new_zeros(0, 1, *value.shape[1:]) for name, value in (extra[0] if extra else {}).items()}
        none = torch.zeros(0, 1, dtype=torch.int64)
        # a batch of no images, so that there is always something to join, and one object
        batches = [Targets(torch.zeros(0, 1, 4), none, none.bool(), extra=nothing)]
        for row, (boxes, labels, ignore) in enumerate(objects):  # on the host, where ragged lists become a batch
            own = {name: value[None] for name, value in extra[row].items()} if extra else {}
            batches.append(Targets(boxes[None].float(), labels[None].long(), ignore[None].bool(), extra=own))
        return Targets.cat(batches)


@dataclass(frozen=True)
class Predictions(BatchedObjects):
    """Decoded, before NMS.

    boxes: (B, A, 4) or (B, A, C, 4), in pixels of the network's input. scores: (B, A, C), no background. features:
    whatever the detector's `refine` reads of these predictions' images, such as feature maps (B, ...).
    """

    boxes: Tensor
    scores: Tensor
    features: Any = field(default=None, metadata=OF_IMAGES)

    def __post_init__(self) -> None:
        _expect(self, "scores", (None, None, None))
        batch, anchors, classes = self.scores.shape
        shape = (batch, anchors, 4) if self.boxes.ndim == 3 else (batch, anchors, classes, 4)
        _expect(self, "boxes", shape)


@dataclass(frozen=True)
class Detections(BatchedObjects):
    """Final boxes of a batch in pixels of the original images, best first.

    boxes: (B, D, 4); scores: (B, D); labels: (B, D) int64, -1 where an image has fewer than D. extra: (B, D, ...)
    fields of a detector's own.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor = field(metadata=LABELS)
    extra: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        _expect(self, "labels", (None, None), torch.int64)
        _expect(self, "boxes", (*self.labels.shape, 4))
        _expect(self, "scores", tuple(self.labels.shape))
        _expect_extra(self, self.extra, self.labels.shape)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def valid(self) -> Tensor:
        """(B, D) bool: True for detections, False for padding."""
        return self.labels >= 0

    def image(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (boxes (n, 4), scores (n,), labels (n,)) of one image without padding; syncs with the device."""
        valid = self.labels[index] >= 0
        return self.boxes[index][valid], self.scores[index][valid], self.labels[index][valid]

    def unpad(self) -> list[Self]:
        """Return a batch for each image, without padding; syncs with the device."""
        images = [self.part(slice(row, row + 1)) for row in range(len(self))]
        return [image.take(image.valid[0].nonzero().T) for image in images]


@dataclass(frozen=True)
class TruthSet(Batched):
    """All objects of a data set, flat.

    boxes: (G, 4); labels: (G,) int64; ignore: (G,) bool; image: (G,) int64 index into `ids`. area: (G,) square pixels,
    of any float type, as an annotation gives them (COCO's are those of its masks); None stands for the boxes' areas.
    difficult, truncated: (G,) bool, as annotated; None where nobody knows. extra: (G, ...) fields of a user's own.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    image: Tensor
    ids: tuple[str, ...] = field(metadata=SHARED)
    classes: tuple[str, ...] = field(metadata=SHARED)
    area: Tensor | None = None
    difficult: Tensor | None = None
    truncated: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        _expect(self, "labels", (None,), torch.int64)
        count = len(self.labels)
        _expect(self, "boxes", (count, 4))
        _expect(self, "ignore", (count,), torch.bool)
        for name in ("difficult", "truncated"):
            if getattr(self, name) is not None:
                _expect(self, name, (count,), torch.bool)
        _expect(self, "image", (count,), torch.int64)
        if self.area is not None:
            _expect(self, "area", (count,))
        _expect_extra(self, self.extra, (count,))


@dataclass(frozen=True)
class DetectionSet(Batched):
    """All detections of a data set, flat.

    boxes: (D, 4); scores: (D,); labels: (D,) int64; image: (D,) int64 index into `ids`. extra: (D, ...) fields of a
    detector's own.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    image: Tensor
    ids: tuple[str, ...] = field(metadata=SHARED)
    classes: tuple[str, ...] = field(metadata=SHARED)
    extra: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        _expect(self, "labels", (None,), torch.int64)
        count = len(self.labels)
        _expect(self, "boxes", (count, 4))
        _expect(self, "scores", (count,))
        _expect(self, "image", (count,), torch.int64)
        _expect_extra(self, self.extra, (count,))

    @classmethod
    def from_batches(
        cls, batches: Iterable[tuple[Detections, tuple[str, ...]]], classes: tuple[str, ...]
    ) -> "DetectionSet":
        """Join batches of padded detections (on any device) into one flat set on the CPU."""
        parts: list[DetectionSet] = []
        ids: list[str] = []
        for detections, names in batches:
            detections = detections.to("cpu")
            valid = detections.valid
            image = torch.arange(len(ids), len(ids) + len(names)).unsqueeze(1).expand_as(valid)
            extra = {name: value[valid] for name, value in detections.extra.items()}
            boxes, scores = detections.boxes[valid].float(), detections.scores[valid].float()
            parts.append(DetectionSet(boxes, scores, detections.labels[valid], image[valid], (), (), extra=extra))
            ids.extend(names)
        none = torch.zeros(0, dtype=torch.int64)
        joined = (
            DetectionSet.cat(parts) if parts else DetectionSet(torch.zeros(0, 4), torch.zeros(0), none, none, (), ())
        )
        return replace(joined, ids=tuple(ids), classes=classes)


@dataclass(frozen=True)
class InputSpec:
    """How a network wants its images.

    resize: "stretch" fills `size`, (height, width) in pixels, regardless of the aspect ratio; "shortest" keeps it, and
    makes the shortest side size[0] long, or less where the longest would be more than size[1]; "none" leaves images as
    they are, for networks that resize them, or regions of them, by themselves.
    floor: whether sides of "shortest" are cut to whole pixels, as torchvision's are, and not rounded.
    Pixels become (value / divisor - mean) / std, channel by channel in RGB order.
    """

    size: tuple[int, int] = (0, 0)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    divisor: float = 255.0
    resize: Literal["stretch", "shortest", "none"] = "stretch"
    floor: bool = False

    def __str__(self) -> str:
        if self.resize == "stretch":
            return f"{self.size[1]}x{self.size[0]}"
        if self.resize == "none":
            return "images at their own size"
        return f"shortest side {self.size[0]}, longest at most {self.size[1]}"

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that an image of this size is resized to."""
        if self.resize == "stretch":
            return self.size
        if self.resize == "none":
            return height, width
        factor = min(self.size[0] / min(height, width), self.size[1] / max(height, width))
        to_int = math.floor if self.floor else round
        return max(1, to_int(height * factor)), max(1, to_int(width * factor))
