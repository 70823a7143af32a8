"""What every metric starts with: checked sets, names joined, detections in order, detections beside objects."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from detkit.errors import UserError, did_you_mean
from detkit.ops.sorting import argsort_descending
from detkit.structures import DetectionSet, TruthSet

# (detection, object) pairs whose IoU is held at once: bounds the memory, and fits the cache
PAIRS = 1 << 17


class Matches(NamedTuple):
    """Which object each detection took, by a metric's rules.

    order: (K,) the detections that the metric looks at, class by class, best score first, equal scores in the metric's
    order. labels: (K,) their classes as the truth numbers them. object: (K,) the object, the number of objects where
    there is none. tp, fp: (K,) bool, true and false positives; a detection of an ignored object is neither.
    """

    order: Tensor
    labels: Tensor
    object: Tensor
    tp: Tensor
    fp: Tensor

    @property
    def counted(self) -> Tensor:
        """(K,) bool, what precision is computed from."""
        return self.tp | self.fp


def join(detections: DetectionSet, truth: TruthSet) -> tuple[Tensor, Tensor]:
    """Return the detections' labels and images (D,) int64 as `truth` numbers them; both sets are checked.

    Raises UserError where detections name an image or a class that the truth does not have, or hold a score or box
    that is not finite; ValueError where a label or an image index is out of range.
    """
    check_detections(detections)
    _check_range(truth.labels, len(truth.classes), "truth.labels")
    _check_range(truth.image, len(truth.ids), "truth.image")
    labels = _rename(detections.labels, detections.classes, truth.classes, "class")
    return labels, _rename(detections.image, detections.ids, truth.ids, "image")


def check_detections(detections: DetectionSet) -> None:
    """Raise UserError for a score or box that is not finite, ValueError for a label or image out of range."""
    _check_range(detections.labels, len(detections.classes), "detections.labels")
    _check_range(detections.image, len(detections.ids), "detections.image")
    for name, values in (("score", detections.scores.unsqueeze(1)), ("box", detections.boxes)):
        # the smallest and the largest of values are NaN where any is
        if values.numel() and not torch.stack(values.aminmax()).isfinite().all():
            row = int((~values.isfinite().all(1)).nonzero()[0])
            label, image = int(detections.labels[row]), int(detections.image[row])
            shown = ", ".join(f"{value:g}" for value in values[row].tolist())
            raise UserError(
                f"detection of {detections.classes[label]!r} in image {detections.ids[image]!r}: "
                f"its {name} ({shown}) is not finite"
            )


def _check_range(values: Tensor, stop: int, name: str) -> None:
    if len(values):
        low, high = (int(value) for value in values.aminmax())
        if low < 0 or high >= stop:
            raise ValueError(f"{name}: expected values from 0 to {stop - 1}, got {low} to {high}")


def _rename(index: Tensor, names: tuple[str, ...], known: tuple[str, ...], what: str) -> Tensor:
    """Turn indices into `names` into indices into `known`."""
    if names == known:
        return index
    position = {name: number for number, name in enumerate(known)}
    for name in names:
        if name not in position:
            hint = did_you_mean(name, known) if what == "class" else ""
            raise UserError(f"detections have the {what} {name!r}, which the data set does not have{hint}")
    return torch.tensor([position[name] for name in names], dtype=torch.int64, device=index.device)[index]


def plain(value: float) -> float | None:
    """NaN -> None, which JSON knows."""
    return None if value != value else value


def by_class_and_score(labels: Tensor, scores: Tensor) -> Tensor:
    """Return the order by class, then from the best score down, equal scores as given."""
    order = argsort_descending(scores)
    return order[labels[order].sort(stable=True).indices]


def starts(counts: Tensor) -> Tensor:
    """Return where each of several runs begins that lie one after the other, from how long they are: both (N,)."""
    return counts.cumsum(0) - counts


def candidates(group: Tensor, object_group: Tensor, groups: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield all pairs of a detection and an object of its group, about PAIRS at once.

    group: (D,) int64 group of each detection; object_group: (G,) that of each object; groups: how many there are.
    Yields (part, row, candidate): part (d,) detections, ascending; row (n,) into `part` and candidate (n,) into the
    objects are the pairs, those of a detection one after the other, its objects in the order given.
    """
    objects_by_group = object_group.sort(stable=True).indices
    count = torch.bincount(object_group, minlength=groups)
    start = starts(count)
    compared = count[group].nonzero().squeeze(1) if len(object_group) else group[:0]
    pairs = count[group[compared]].cumsum(0)
    parts = int(pairs[-1]) // PAIRS if len(pairs) else 0
    limits = torch.arange(1, parts + 1, device=pairs.device) * PAIRS
    for part in torch.tensor_split(compared, torch.searchsorted(pairs, limits).cpu()):
        objects = count[group[part]]  # to compare each detection with
        row = torch.repeat_interleave(objects)
        # from where a detection's pairs begin among all to where its objects begin
        shift = start[group[part]] - starts(objects)
        yield part, row, objects_by_group[torch.arange(len(row), device=row.device) + shift[row]]
