"""Average precision by the PASCAL VOC development kit's rules (VOCevaldet.m, VOCap.m, VOC07's xVOCap.m)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from detkit.errors import UserError
from detkit.evaluation.flat import Matches, by_class_and_score, candidates, join
from detkit.structures import DetectionSet, TruthSet

Metric = Literal["voc07", "voc"]
METRICS: dict[str, str] = {"voc07": "11-point AP", "voc": "area under curve"}
_NAMES = {**METRICS, "coco": "101-point AP"}


@dataclass(frozen=True)
class VOCResult:
    """AP of every class at one IoU, and the curves behind it.

    metric: one of METRICS, or coco where this is a part of a COCOResult. ap: (C,) float64, NaN for a class without
    objects to find. npos: (C,) int64, objects to find, which difficult ones are not. found: (C,) int64, true positives.
    counted: (C,) int64, true and false positives; detections of difficult objects are neither. The curves of all
    classes lie in one row, class after class, best score first, one point for each counted detection: recall, precision
    (P,) float64 and scores (P,); `curve` returns those of one class.
    """

    metric: Metric | Literal["coco"]
    iou: float
    images: int
    classes: tuple[str, ...]
    ap: Tensor
    npos: Tensor
    found: Tensor
    counted: Tensor
    recall: Tensor
    precision: Tensor
    scores: Tensor

    @cached_property
    def mAP(self) -> float:
        """Mean over the classes that have objects to find; NaN where none has."""
        return float(self.ap.nanmean())

    @property
    def protocol(self) -> str:
        """What the numbers are, for printing beside them."""
        return f"{self.metric} ({_NAMES[self.metric]}), IoU >= {self.iou:g}, difficult ignored"

    @property
    def curves(self) -> "VOCResult":
        """What precision and recall are drawn from: of a COCOResult a part, here all."""
        return self

    def curve(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (recall, precision, scores) of one class, best score first."""
        stop = int(self.counted[: index + 1].sum())
        part = slice(stop - int(self.counted[index]), stop)
        return self.recall[part], self.precision[part], self.scores[part]

    def to_dict(self) -> dict[str, Any]:
        """Return what metrics.json holds of this result; null stands for NaN, which JSON does not know."""
        values = [None if value != value else value for value in [self.mAP, *self.ap.tolist()]]
        return {
            "metric": self.metric,
            "mAP": values[0],
            "AP": dict(zip(self.classes, values[1:])),
            "iou": self.iou,
            "images": self.images,
        }


def voc_ap(detections: DetectionSet, truth: TruthSet, *, iou: float = 0.5, metric: Metric | str = "voc07") -> VOCResult:
    """Score a data set's detections as VOCevaldet.m does.

    Each detection, best score of its class first and equal scores in the order given, is compared with the object of
    its class and image that it overlaps most (the first of equals), whether difficult or taken already. Where that IoU
    is at least `iou`: a difficult object makes it neither right nor wrong, a free object is taken and makes it a true
    positive, a taken one makes it a false positive. Every other detection is a false positive. `voc07` is the mean of
    the best precision at recalls 0, .1, ..., 1; `voc`, of VOC2010 and later, the area under the precision envelope.
    Unlike the kit, which gives 0, a class without objects to find has AP NaN and does not enter the mean.

    detections, truth: their `ids` and `classes` may differ in order, and are joined by name; an image or a class that
    `detections` does not mention has no detections. Both lie on one device, where all of the work is done; boxes are
    continuous pixels, in which the kit's "+ 1" disappears. IoU is computed in float64, which decides exact halves of
    whole pixels as the kit does.

    Raises UserError where detections name an image or a class that the truth does not have, or hold a score or box
    that is not finite; ValueError where a label or an image index is out of range.
    """
    if metric not in get_args(Metric):
        raise UserError(f"metric {metric!r} is not one of {', '.join(METRICS)}")
    if not 0 < iou <= 1:
        raise UserError(f"iou {iou:g} is not above 0 and up to 1")
    matches = voc_matches(detections, truth, iou=iou)

    classes = len(truth.classes)
    npos = torch.bincount(truth.labels[~truth.ignore], minlength=classes)
    labels, right = matches.labels[matches.counts], matches.right[matches.counts]
    scores = detections.scores[matches.order[matches.counts]]
    recall, precision = recall_precision(labels, right, npos)
    ap = torch.where(npos > 0, voc_average(recall[right], precision[right], labels[right], npos, metric), torch.nan)
    return VOCResult(
        metric=metric,  # pyright: ignore[reportArgumentType]
        iou=iou,
        images=len(truth.ids),
        classes=truth.classes,
        ap=ap,
        npos=npos,
        found=torch.bincount(labels[right], minlength=classes),
        counted=torch.bincount(labels, minlength=classes),
        recall=recall,
        precision=precision,
        scores=scores,
    )


def voc_matches(detections: DetectionSet, truth: TruthSet, *, iou: float = 0.5) -> Matches:
    """Return which object each detection takes by the rules of `voc_ap`, whose errors it raises."""
    labels, image = join(detections, truth)
    match = _best_object(detections.boxes, image * len(truth.classes) + labels, truth, iou)
    order = by_class_and_score(labels, detections.scores)
    match = match[order]
    objects = len(truth.labels)
    rank = torch.arange(len(match), device=match.device)
    first = torch.full((objects + 1,), len(match), device=match.device)
    first.scatter_reduce_(0, match, rank, "amin")
    # one more row stands for "no object"
    ignore = torch.cat((truth.ignore, truth.ignore.new_zeros(1)))[match]
    right = (match < objects) & (first[match] == rank) & ~ignore
    return Matches(order, labels[order], match, right, ~ignore)


def recall_precision(labels: Tensor, right: Tensor, npos: Tensor) -> tuple[Tensor, Tensor]:
    """Return recall and precision (P,) float64 after each detection.

    labels: (P,) ascending, best score first within a class; right: (P,) bool; npos: (C,) objects to find.
    """
    counted = torch.bincount(labels, minlength=len(npos))
    found = torch.bincount(labels[right], minlength=len(npos))
    place = torch.arange(1, len(labels) + 1, device=labels.device) - (counted.cumsum(0) - counted)[labels]
    hits = right.cumsum(0) - (found.cumsum(0) - found)[labels]
    return hits / npos.clamp(min=1)[labels].double(), hits / place.double()


def voc_average(recall: Tensor, precision: Tensor, labels: Tensor, npos: Tensor, metric: Metric | str) -> Tensor:
    """Return (C,) AP from the points of true positives alone, the only ones where the precision envelope steps."""
    measure = _eleven_points if metric == "voc07" else _area
    return measure(recall, precision, labels, npos)


def _best_object(boxes: Tensor, group: Tensor, truth: TruthSet, iou: float) -> Tensor:
    """Return (D,) the object that each detection overlaps most, len(truth.labels) where no IoU reaches `iou`.

    group: (D,) image * C + class; only objects of the same group are compared.
    """
    objects, classes = len(truth.labels), len(truth.classes)
    best_object = torch.full_like(group, objects)
    owner = truth.image * classes + truth.labels
    truth_boxes = truth.boxes.T.double().contiguous()
    for part, row, candidate in candidates(group, owner, len(truth.ids) * classes):
        overlap = _iou(boxes[part].T.double().index_select(1, row), truth_boxes.index_select(1, candidate))
        best = torch.zeros(len(part), dtype=torch.float64, device=row.device)
        best.scatter_reduce_(0, row, overlap, "amax")
        # the first of the objects with the largest IoU; order within a group is the order given
        candidate = torch.where((overlap == best[row]) & (overlap >= iou), candidate, objects)
        best_object[part] = best_object[part].scatter_reduce(0, row, candidate, "amin")
    return best_object


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of pairs: (4, N), (4, N) -> (N,); 0 where they do not meet, so also for boxes without area."""
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    width = (torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)).clamp(min=0)
    height = (torch.minimum(ay2, by2) - torch.maximum(ay1, by1)).clamp(min=0)
    shared = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
    return torch.where(shared > 0, shared / union, 0.0)


def _eleven_points(recall: Tensor, precision: Tensor, labels: Tensor, npos: Tensor) -> Tensor:
    """VOC07: (C,) mean over recalls 0, .1, ..., 1 of the best precision at that recall or beyond, 0 for none."""
    # the products of numpy's arange(0, 1.1, .1), .30000000000000004 among them, as the field's ports have them
    levels = torch.arange(11, dtype=torch.float64, device=recall.device) * 0.1
    reached = torch.where(recall[:, None] >= levels, precision[:, None], 0.0)
    best = reached.new_zeros(len(npos), 11)
    return best.scatter_reduce(0, labels[:, None].expand_as(reached), reached, "amax").mean(1)


def _area(recall: Tensor, precision: Tensor, labels: Tensor, npos: Tensor) -> Tensor:
    """VOC2010: (C,) area under the precision made non-increasing from the right; every point adds 1 / npos."""
    # one running maximum for all classes: read backwards, each class starts above all values of the one before
    lifted = (precision - 2 * labels).flip(0)
    envelope = precision.flip(0)[lifted.cummax(0).indices].flip(0)
    area = torch.zeros(len(npos), dtype=torch.float64, device=recall.device).index_add(0, labels, envelope)
    return area / npos.clamp(min=1)
