"""What flows through detkit: validated dataclasses of batched tensors.

Boxes are float32 continuous `xyxy` in pixels (a pixel spans [x, x + 1)); labels are 0..C-1 and -1 marks padding;
`ignore` marks VOC difficult and COCO crowd objects.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor


def _expect(owner: object, name: str, shape: tuple[int | None, ...], dtype: torch.dtype | None = None) -> None:
    """Raise ValueError unless the field's shape fits (None = any size); reads no tensor values, so never syncs."""
    tensor: Tensor = getattr(owner, name)
    fits = tensor.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, tensor.shape))
    if not fits:
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{type(owner).__name__}.{name}: expected shape ({wanted}), got {tuple(tensor.shape)}")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{type(owner).__name__}.{name}: expected {dtype}, got {tensor.dtype}")


class _Movable:
    """Moves every tensor field of a dataclass, also those within another."""

    def _map(self, function) -> Self:
        values = ((field.name, getattr(self, field.name)) for field in fields(self))  # pyright: ignore[reportArgumentType]
        moved = {
            name: value._map(function) if isinstance(value, _Movable) else function(value)
            for name, value in values
            if isinstance(value, Tensor | _Movable)
        }
        return replace(self, **moved)  # pyright: ignore[reportArgumentType]

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on `device`; from pinned memory the copy to a GPU does not block."""
        # towards the CPU it must: what reads the copy next does not wait for the GPU
        wait = torch.device(device).type == "cpu"
        return self._map(lambda tensor: tensor.to(device, non_blocking=not wait))

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory."""
        return self._map(Tensor.pin_memory)


@dataclass(frozen=True)
class Proposals(_Movable):
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
        most = max([1, *map(len, boxes)]) if count is None else count
        padded = torch.zeros(len(boxes), most, 4)
        valid = torch.zeros(len(boxes), most, dtype=torch.bool)
        values = None if scores is None else torch.zeros(len(boxes), most)
        # host-side collation of ragged lists, as in Targets.pad
        for row, own in enumerate(boxes):
            padded[row, : len(own)] = own[:most]
            valid[row, : len(own)] = True
            if values is not None and scores is not None:
                values[row, : len(own)] = scores[row][:most]
        return cls(padded, valid, values)


@dataclass(frozen=True)
class Images(_Movable):
    """A batch of RGB images, padded at the right and bottom to one size.

    pixels: (B, 3, H, W) uint8. sizes: (B, 2) int64, height and width of each image's valid part.
    original: (B, 2) int64, height and width of the image it was resized from. ids: one name an image.
    proposals: regions given with the images, for detectors that classify such.
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

    def part(self, rows: slice) -> "Images":
        """Return some images of the batch."""
        given = None if self.proposals is None else self.proposals._map(lambda tensor: tensor[rows])
        return Images(self.pixels[rows], self.sizes[rows], self.original[rows], self.ids[rows], given)


@dataclass(frozen=True)
class Targets(_Movable):
    """The objects of a batch, padded. boxes: (B, N, 4); labels: (B, N) int64; ignore: (B, N) bool."""

    boxes: Tensor
    labels: Tensor
    ignore: Tensor

    def __post_init__(self) -> None:
        batch, objects = self.labels.shape if self.labels.ndim == 2 else (None, None)
        _expect(self, "labels", (None, None), torch.int64)
        _expect(self, "boxes", (batch, objects, 4), torch.float32)
        _expect(self, "ignore", (batch, objects), torch.bool)

    @property
    def valid(self) -> Tensor:
        """(B, N) bool: True for objects, False for padding."""
        return self.labels >= 0

    def part(self, rows: slice) -> "Targets":
        """Return the objects of some images of the batch."""
        return Targets(self.boxes[rows], self.labels[rows], self.ignore[rows])

    @classmethod
    def pad(cls, objects: Iterable[tuple[Tensor, Tensor, Tensor]]) -> "Targets":
        """Stack per-image (boxes (n, 4), labels (n,), ignore (n,)), padded to the largest n (at least 1)."""
        objects = list(objects)
        most = max([1, *(len(labels) for _, labels, _ in objects)])
        boxes = torch.zeros(len(objects), most, 4)
        labels = torch.full((len(objects), most), -1, dtype=torch.int64)
        ignore = torch.zeros(len(objects), most, dtype=torch.bool)
        # host-side collation of ragged lists: the one place where a loop over images cannot be avoided
        for row, (box, label, skip) in enumerate(objects):
            boxes[row, : len(label)] = box
            labels[row, : len(label)] = label
            ignore[row, : len(label)] = skip
        return cls(boxes, labels, ignore)


@dataclass(frozen=True)
class Predictions(_Movable):
    """Decoded, before NMS.

    boxes: (B, A, 4) or (B, A, C, 4), in pixels of the network's input. scores: (B, A, C), no background. features:
    whatever the detector's `refine` reads of these predictions' images, such as feature maps.
    """

    boxes: Tensor
    scores: Tensor
    features: Any = None

    def __post_init__(self) -> None:
        _expect(self, "scores", (None, None, None))
        batch, anchors, classes = self.scores.shape
        shape = (batch, anchors, 4) if self.boxes.ndim == 3 else (batch, anchors, classes, 4)
        _expect(self, "boxes", shape)


@dataclass(frozen=True)
class Detections(_Movable):
    """Final boxes of a batch in pixels of the original images, best first.

    boxes: (B, D, 4); scores: (B, D); labels: (B, D) int64, -1 where an image has fewer than D.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        _expect(self, "labels", (None, None), torch.int64)
        _expect(self, "boxes", (*self.labels.shape, 4))
        _expect(self, "scores", tuple(self.labels.shape))

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (boxes (n, 4), scores (n,), labels (n,)) of one image without padding; syncs with the device."""
        real = self.labels[index] >= 0
        return self.boxes[index][real], self.scores[index][real], self.labels[index][real]


@dataclass(frozen=True)
class TruthSet(_Movable):
    """All objects of a data set, flat.

    boxes: (G, 4); labels: (G,) int64; ignore: (G,) bool; image: (G,) int64 index into `ids`. area: (G,) square pixels,
    of any float type, as an annotation gives them (COCO's are those of its masks); None stands for the boxes' areas.
    difficult, truncated: (G,) bool, as annotated; None where nobody knows.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    image: Tensor
    ids: tuple[str, ...]
    classes: tuple[str, ...]
    area: Tensor | None = None
    difficult: Tensor | None = None
    truncated: Tensor | None = None

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


@dataclass(frozen=True)
class DetectionSet(_Movable):
    """All detections of a data set, flat.

    boxes: (D, 4); scores: (D,); labels: (D,) int64; image: (D,) int64 index into `ids`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    image: Tensor
    ids: tuple[str, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _expect(self, "labels", (None,), torch.int64)
        count = len(self.labels)
        _expect(self, "boxes", (count, 4))
        _expect(self, "scores", (count,))
        _expect(self, "image", (count,), torch.int64)

    @classmethod
    def from_batches(
        cls, batches: Iterable[tuple[Detections, tuple[str, ...]]], classes: tuple[str, ...]
    ) -> "DetectionSet":
        """Join batches of padded detections (on any device) into one flat set on the CPU."""
        boxes, scores, labels, image = [torch.zeros(0, 4)], [torch.zeros(0)], [], []
        labels.append(torch.zeros(0, dtype=torch.int64))
        image.append(torch.zeros(0, dtype=torch.int64))
        ids: list[str] = []
        for detections, names in batches:
            detections = detections.to("cpu")
            real = detections.labels >= 0
            row = torch.arange(len(names)).unsqueeze(1).expand_as(real) + len(ids)
            boxes.append(detections.boxes[real].float())
            scores.append(detections.scores[real].float())
            labels.append(detections.labels[real])
            image.append(row[real])
            ids.extend(names)
        parts = (torch.cat(part) for part in (boxes, scores, labels, image))
        return cls(*parts, ids=tuple(ids), classes=classes)


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
        whole = math.floor if self.floor else round
        return max(1, whole(height * factor)), max(1, whole(width * factor))
