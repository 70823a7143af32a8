"""What flows through detkit: validated dataclasses of batched tensors.

Boxes are float32 continuous `xyxy` in pixels (a pixel spans [x, x + 1)); labels are 0..C-1 and -1 marks padding;
`ignore` marks VOC difficult and COCO crowd objects.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from detkit.batched import LABELS, OF_IMAGES, SHARED, Batched, BatchedObjects
from detkit.rle import RLE


def _expect(structure: object, name: str, shape: tuple[int | None, ...], dtype: torch.dtype | None = None) -> None:
    """Raise ValueError unless the field, where it is there, is of this shape (None = any size) and type.

    Reads no tensor values, so never syncs.
    """
    tensor: Tensor | None = getattr(structure, name)
    if tensor is None:
        return
    fits = tensor.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, tensor.shape))
    if not fits:
        expected = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{type(structure).__name__}.{name}: expected shape ({expected}), got {tuple(tensor.shape)}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{type(structure).__name__}.{name}: expected {dtype}, got {tensor.dtype}")


def _expect_objects(structure: Any, ndim: int, **dtypes: torch.dtype | None) -> None:
    """Raise ValueError unless `labels` has so many dimensions, and the other fields as many objects, of these types.

    `boxes` ends with 4 numbers more, extra fields with whatever they have.
    """
    _expect(structure, "labels", (None,) * ndim, torch.int64)
    shape = tuple(structure.labels.shape)
    for name, dtype in dtypes.items():
        _expect(structure, name, (*shape, 4) if name == "boxes" else shape, dtype)
    for name, tensor in structure.extra.items():
        if tensor.shape[:ndim] != shape:
            expected = ", ".join(map(str, shape))
            where = f"{type(structure).__name__}.extra[{name!r}]"
            raise ValueError(f"{where}: expected shape ({expected}, ...), got {tuple(tensor.shape)}")


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
        valid = torch.arange(count) < torch.tensor([[len(image_boxes)] for image_boxes in boxes]).view(-1, 1)
        padded = torch.zeros(*valid.shape, 4)
        padded_scores = None if scores is None else torch.zeros(valid.shape)
        for row, image_boxes in enumerate(boxes):  # on the host, where ragged lists become a batch
            padded[row, : len(image_boxes)] = image_boxes[:count]
            if scores is not None and padded_scores is not None:
                padded_scores[row, : len(image_boxes)] = scores[row][:count]
        return Proposals(padded, valid, padded_scores)


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
    own, such as track ids; augmentation drops and keeps their rows with the boxes, and leaves their values alone. Of
    detectors that learn masks it has `masks`, (B, N, h, bytes) uint8, in pixels of the input, see `ops.pack_masks`.
    """

    boxes: Tensor
    labels: Tensor = field(metadata=LABELS)
    ignore: Tensor
    extra: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        _expect_objects(self, 2, boxes=torch.float32, ignore=torch.bool)

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
        _expect(self, "boxes", (batch, anchors, 4) if self.boxes.ndim == 3 else (batch, anchors, classes, 4))

    def row(self, index: int) -> "Predictions":
        """Return one row of each image, (B, 1, ...)."""
        rows = slice(index, index + 1)
        return Predictions(self.boxes[:, rows], self.scores[:, rows])


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
        _expect_objects(self, 2, boxes=None, scores=None)

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
    difficult, truncated: (G,) bool, as annotated; None where nobody knows. masks: G run lengths, see detkit/rle.py;
    None where nobody asked for them. extra: (G, ...) fields of a user's own.
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
    masks: tuple[RLE, ...] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        marks = dict.fromkeys(("ignore", "difficult", "truncated"), torch.bool)
        _expect_objects(self, 1, boxes=None, image=torch.int64, area=None, **marks)


@dataclass(frozen=True)
class DetectionSet(Batched):
    """All detections of a data set, flat.

    boxes: (D, 4); scores: (D,); labels: (D,) int64; image: (D,) int64 index into `ids`. masks: D run lengths, see
    detkit/rle.py; None of a detector that finds none. extra: (D, ...) fields of a detector's own.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    image: Tensor
    ids: tuple[str, ...] = field(metadata=SHARED)
    classes: tuple[str, ...] = field(metadata=SHARED)
    masks: tuple[RLE, ...] | None = None
    extra: dict[str, Tensor] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        _expect_objects(self, 1, boxes=None, scores=None, image=torch.int64)

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
        parts = parts or [DetectionSet(torch.zeros(0, 4), torch.zeros(0), none, none, (), ())]
        return replace(DetectionSet.cat(parts), ids=tuple(ids), classes=classes)


@dataclass(frozen=True)
class InputSpec:
    """How a network wants its images.

    resize: "stretch" fills `size`, (height, width) in pixels, regardless of the aspect ratio; "shortest" keeps it, and
    makes the shortest side size[0] long, or less where the longest would be more than size[1]; "letterbox" keeps it,
    and makes images as large as fit into `size`, a canvas that the network lays them on by itself; "none" leaves images
    as they are, for networks that resize them, or regions of them, by themselves.
    floor: whether sides of "shortest" are cut to whole pixels, as torchvision's are, and not rounded.
    Pixels become (value / divisor - mean) / std, channel by channel in RGB order.
    """

    size: tuple[int, int] = (0, 0)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    divisor: float = 255.0
    resize: Literal["stretch", "shortest", "letterbox", "none"] = "stretch"
    floor: bool = False

    def __str__(self) -> str:
        if self.resize == "stretch":
            return f"{self.size[1]}x{self.size[0]}"
        if self.resize == "letterbox":
            return f"{self.size[1]}x{self.size[0]}, letterboxed"
        if self.resize == "none":
            return "images at their own size"
        return f"shortest side {self.size[0]}, longest at most {self.size[1]}"

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that an image of this size is resized to."""
        if self.resize == "stretch":
            return self.size
        if self.resize == "none":
            return height, width
        if self.resize == "letterbox":
            rows, columns = self.size
            return min(rows, max(1, height * columns // width)), min(columns, max(1, width * rows // height))
        factor = min(self.size[0] / min(height, width), self.size[1] / max(height, width))
        to_int = math.floor if self.floor else round
        return max(1, to_int(height * factor)), max(1, to_int(width * factor))
