"""What a detector found in an image: `detector.detect(source)` returns one of these for each."""

import html
import operator
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self, SupportsIndex, cast, overload

import numpy as np
import torch
from torch import Tensor

from detkit import rle, viz
from detkit.batched import SHARED, Batched
from detkit.data.image_file import decode_image
from detkit.errors import UserError
from detkit.inference.images import frames
from detkit.inference.sources import Video
from detkit.inference.thresholds import known_classes
from detkit.names import shown
from detkit.ops import object_masks
from detkit.rle import RLE
from detkit.viz.shown import Shown

SHOWN = 20  # lines of a notebook's table


class Detection(NamedTuple):
    """One object. box: left, top, right, bottom in pixels of the image, continuous. name: of its class."""

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str


@dataclass(frozen=True, repr=False)
class ImageDetections(Batched, Shown):
    """The detections of an image, best first, on the CPU.

    It has a length, can be gone through, and indexed: a number gives a Detection, a slice, mask or index of tensors
    gives some of them. `==` compares values, not pixels.

    boxes: (n, 4) float32 xyxy in pixels of the image, continuous. scores: (n,). labels: (n,) int64 index into
    `classes`, the names of all that the detector knows. size: (height, width) of the image. path: its file, or its
    video, of which it is the frame with number `frame` from 0, `seconds` after the first. url: its web address. path
    and url are None for images in memory, path is for cameras. extra: (n, ...) fields of a detector's own.
    kept: the pixels, None where they are read again when they are asked for, see `pixels`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    classes: tuple[str, ...] = field(metadata=SHARED)
    size: tuple[int, int] = field(metadata=SHARED)
    path: Path | None = field(default=None, metadata=SHARED, kw_only=True)
    url: str | None = field(default=None, metadata=SHARED, kw_only=True)
    frame: int | None = field(default=None, metadata=SHARED, kw_only=True)
    seconds: float | None = field(default=None, metadata=SHARED, kw_only=True)
    extra: dict[str, Tensor] = field(default_factory=dict, kw_only=True)
    kept: np.ndarray | None = field(default=None, metadata=SHARED, compare=False, kw_only=True)

    # one by one

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist())
        return (Detection((*box,), score, label, self.classes[label]) for box, score, label in rows)

    @overload
    def __getitem__(self, key: SupportsIndex) -> Detection: ...
    @overload
    def __getitem__(self, key: slice | Tensor | np.ndarray | list[int] | list[bool]) -> Self: ...
    def __getitem__(self, key: Any) -> Detection | Self:
        if isinstance(key, slice):
            return self.part(torch.tensor(range(len(self))[key], dtype=torch.int64))
        if isinstance(key, list | np.ndarray | Tensor) and (rows := torch.as_tensor(key)).ndim:
            return self.part(rows if len(rows) else rows.long())
        row = operator.index(cast("SupportsIndex", key))
        if not -len(self) <= row < len(self):
            raise IndexError(f"no detection {row}: there are {len(self)}")
        row %= len(self)
        return next(iter(self.part(slice(row, row + 1))))

    @property
    def names(self) -> list[str]:
        """The class of each detection."""
        return [self.classes[label] for label in self.labels.tolist()]

    @property
    def masks(self) -> Tensor | None:
        """(n, height, width) bool, the pixels of each object; None of a detector that finds none."""
        if "masks" not in self.extra:
            return None
        return object_masks(self.extra["masks"], self.boxes, self.size)

    def run_lengths(self) -> list[RLE] | None:
        """Return the masks as COCO's run lengths, as JSON has them; None of a detector that finds none."""
        masks = self.masks
        return None if masks is None else [rle.to_json(mask) for mask in rle.encode(masks.numpy())]

    def filter(self, *, score: float | None = None, classes: str | Collection[str] | None = None) -> Self:
        """Return the detections whose score is above `score`, and whose class is, or is among, `classes`.

        Raises UserError for a class that the detector does not know.
        """
        keep = torch.ones(len(self), dtype=torch.bool)
        if score is not None:
            keep &= self.scores > score
        if classes is not None:
            labels = [self.classes.index(name) for name in known_classes(classes, self.classes)]
            keep &= torch.isin(self.labels, torch.tensor(labels, dtype=torch.int64))
        return self.part(keep)

    def image(self, index: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return (boxes, scores, labels), as `Detections.image` does of an image of a batch; here there is but one."""
        if index not in (0, -1):
            raise IndexError(f"image {index}: these are the detections of one image")
        return self.boxes, self.scores, self.labels

    # as others have it

    def rows(self) -> list[tuple[int, float, list[float]]]:
        """Return label, score and box of each, rounded to what means something: 6 decimals, and 3 of a pixel."""
        rows = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist())
        return [(label, round(score, 6), [round(edge, 3) for edge in box]) for label, score, box in rows]

    def to_dict(self) -> dict[str, Any]:
        """Return the image's entry in detections.json: plain values, rounded as `rows` has them.

        file (null for an image in memory), frame and seconds of a frame, width, height, detections: class, score, box,
        and mask, COCO's run lengths, of a detector that finds such.
        """
        found = [{"class": self.classes[label], "score": score, "box": box} for label, score, box in self.rows()]
        found = [one | ({} if mask is None else {"mask": mask}) for one, mask in self._with_masks(found)]
        height, width = self.size
        return {"file": self._name(), **self.moment(), "width": width, "height": height, "detections": found}

    def moment(self) -> dict[str, Any]:
        """Return frame and seconds of a frame, {} for an image."""
        return {} if self.frame is None else {"frame": self.frame, "seconds": round(self.seconds or 0.0, 3)}

    def to_coco(
        self, image_id: int | str | None = None, category_ids: Sequence[int | str] | None = None
    ) -> list[dict[str, Any]]:
        """Return an entry of COCO's results for each: image_id, category_id, bbox (left, top, width, height), score;
        and segmentation, run lengths, of a detector that finds masks.

        image_id: by default what the file's name is without its suffix, a number where it is one, as COCO's are; an
        image that is no file needs one. category_ids: of each class, such as a COCO data set's `category_ids`; by
        default 1 and up. Numbers are rounded as `rows` has them.
        """
        if image_id is None:
            if self.path is None or self.frame is not None:
                raise UserError("to_coco needs an image_id: this image is no file, whose name could be one")
            image_id = int(self.path.stem) if self.path.stem.isdecimal() else self.path.stem
        category_ids = range(1, len(self.classes) + 1) if category_ids is None else category_ids
        if len(category_ids) != len(self.classes):
            raise UserError(f"to_coco: {len(category_ids)} category_ids for {len(self.classes)} classes")
        found = [
            {
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": [left, top, round(right - left, 3), round(bottom - top, 3)],
                "score": score,
            }
            for label, score, (left, top, right, bottom) in self.rows()
        ]
        return [one | ({} if mask is None else {"segmentation": mask}) for one, mask in self._with_masks(found)]

    def _with_masks(self, entries: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], RLE | None]]:
        """Pair the entry of each detection with its mask, None where there is none."""
        return zip(entries, self.run_lengths() or [None] * len(entries))

    def to_pandas(self) -> Any:
        """Return a DataFrame of file, frame (None for images), class, score, left, top, right, bottom; needs pandas."""
        pandas = _optional("pandas", "to_pandas")
        columns = {"file": self._name(), "frame": self.frame, "class": self.names, "score": self.scores.numpy()}
        edges = dict(zip(("left", "top", "right", "bottom"), self.boxes.numpy().T))
        return pandas.DataFrame({**columns, **edges}, index=range(len(self)))

    def to_supervision(self) -> Any:
        """Return supervision's Detections, with masks if there are any, and the names of classes as
        `data["class_name"]`; needs supervision."""
        supervision = _optional("supervision", "to_supervision")
        masks = self.masks
        return supervision.Detections(
            xyxy=self.boxes.numpy().copy(),
            confidence=self.scores.numpy().copy(),
            class_id=self.labels.numpy().copy(),
            mask=None if masks is None else masks.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    # seen

    @property
    def pixels(self) -> np.ndarray:
        """The image, (H, W, 3) RGB uint8. Where it is not kept, its file is read, or its video up to its frame.

        Raises UserError where that is gone, or of another size now.
        """
        if self.kept is not None:
            return self.kept
        if self.path is None:
            raise UserError("the pixels of this image were not kept, and it is no file")
        if self.frame is None:
            pixels = decode_image(self.path)
        else:
            pixels = next((one.pixels for one in islice(frames(Video(self.path)), self.frame, None)), None)
        if pixels is None or pixels.shape[:2] != self.size:
            raise UserError(f"{self.path}: has changed since the detector looked at it")
        return pixels

    def plot(self) -> np.ndarray:
        """Return the image with its boxes, masks, names and scores, (H, W, 3) RGB uint8."""
        return viz.draw(self.pixels, self.boxes, self.labels, self.classes, scores=self.scores, masks=self.masks)

    def __repr__(self) -> str:
        return f"<ImageDetections {self._title()}>"

    def _repr_html_(self) -> str:
        """The image and its best detections, for a notebook."""
        rows = [
            _row((html.escape(shown(name)), f"{score:.3f}", *(f"{edge:.1f}" for edge in box)))
            for box, score, _, name in islice(self, SHOWN)
        ]
        head = _row(("class", "score", "left", "top", "right", "bottom"), "th")
        table = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>" if rows else ""
        more = f"<p>and {len(self) - SHOWN} more</p>" if len(self) > SHOWN else ""
        return f"<div><p>{html.escape(self._title())}</p>{self._picture()}{table}{more}</div>"

    def _name(self) -> str | None:
        return self.url if self.path is None else str(self.path)

    def _title(self) -> str:
        height, width = self.size
        frame = "" if self.frame is None else f" frame {self.frame}"
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        return shown(f"{self._name() or 'image'}{frame} {width}x{height}: {counts or 'nothing found'}")

    def without_pixels(self) -> Self:
        """Return them without the pixels, where these can be read again."""
        return self if self.path is None else replace(self, kept=None)


def _row(cells: Iterable[str], kind: str = "td") -> str:
    return f"<tr>{''.join(f'<{kind}>{cell}</{kind}>' for cell in cells)}</tr>"


def _optional(package: str, method: str) -> Any:
    """Import a package that detkit does without."""
    try:
        return import_module(package)
    except ImportError:
        raise UserError(f"{method} needs {package}: pip install {package}") from None
