"""Average precision by the PASCAL VOC development kit's rules (VOCevaldet.m, VOCap.m, VOC07's xVOCap.m).

The steps are the kit's, in its order, each for all classes at once: sort the detections, assign them to objects,
compute precision and recall, then AP. tests/evaluation/reference.py has the same as the kit's loops.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from detkit.errors import UserError
from detkit.evaluation.flat import Matches, by_class_and_score, candidates, join, plain, starts
from detkit.ops.boxes import paired_iou
from detkit.structures import DetectionSet, TruthSet

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

    metric: str
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
        return {
            "metric": self.metric,
            "mAP": plain(self.mAP),
            "AP": dict(zip(self.classes, map(plain, self.ap.tolist()))),
            "iou": self.iou,
            "images": self.images,
        }


def voc_ap(detections: DetectionSet, truth: TruthSet, *, iou: float = 0.5, metric: str = "voc07") -> VOCResult:
    """Score a data set's detections as VOCevaldet.m does.

        >>> boxes, image, label = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0]), torch.tensor([0])
        >>> truth = TruthSet(boxes, label, torch.tensor([False]), image, ids=("a",), classes=("cat",))
        >>> found = DetectionSet(boxes + 1, torch.tensor([0.9]), label, image, ids=("a",), classes=("cat",))
        >>> float(voc_ap(found, truth).mAP), float(voc_ap(found, truth, iou=0.75).mAP)
        (1.0, 0.0)

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
    if metric not in METRICS:
        raise UserError(f"metric {metric!r} is not one of {', '.join(METRICS)}")
    if not 0 < iou <= 1:
        raise UserError(f"iou {iou:g} is not above 0 and up to 1")
    npos = torch.bincount(truth.labels[~truth.ignore], minlength=len(truth.classes))
    return voc_result(voc_matches(detections, truth, iou=iou), detections.scores, npos, truth, metric, iou)


def voc_result(
    matches: Matches,
    scores: Tensor,
    npos: Tensor,
    truth: TruthSet,
    metric: str,
    iou: float,
    ap: Tensor | None = None,
) -> VOCResult:
    """Return the curves of `matches`. scores: (D,) of all detections; npos: (C,) objects to find; ap: (C,), None to
    compute it by `metric`."""
    counted = matches.counted
    labels, tp = matches.labels[counted], matches.tp[counted]
    recall, precision = recall_precision(labels, tp, npos)
    if ap is None:
        ap = voc_average(recall[tp], precision[tp], labels[tp], npos, metric)
    return VOCResult(
        metric=metric,
        iou=iou,
        images=len(truth.ids),
        classes=truth.classes,
        ap=ap.masked_fill(npos == 0, torch.nan),
        npos=npos,
        found=torch.bincount(labels[tp], minlength=len(npos)),
        counted=torch.bincount(labels, minlength=len(npos)),
        recall=recall,
        precision=precision,
        scores=scores[matches.order[counted]],
    )


def voc_matches(detections: DetectionSet, truth: TruthSet, *, iou: float = 0.5) -> Matches:
    """Return which object each detection takes by the rules of `voc_ap`, whose errors it raises."""
    labels, image = join(detections, truth)
    # sort detections by decreasing confidence, class after class
    order = by_class_and_score(labels, detections.scores)
    # assign detections to ground truth objects: of all detections of an object the first takes it
    match = _best_object(detections.boxes, image * len(truth.classes) + labels, truth, iou)[order]
    rank = torch.arange(len(match), device=match.device)
    no_object = len(truth.labels)
    taker = torch.full((no_object + 1,), len(match), device=match.device)
    taker.scatter_reduce_(0, match, rank, "amin")
    difficult = torch.cat((truth.ignore, truth.ignore.new_zeros(1)))[match]  # False for no_object
    tp = (match < no_object) & (taker[match] == rank) & ~difficult
    return Matches(order, labels[order], match, tp=tp, fp=~tp & ~difficult)


def _best_object(boxes: Tensor, group: Tensor, truth: TruthSet, iou: float) -> Tensor:
    """Return (D,) the object that each detection overlaps most, len(truth.labels) where no IoU reaches `iou`.

    group: (D,) image * C + class; only objects of the same group are compared.
    """
    no_object, classes = len(truth.labels), len(truth.classes)
    best_object = torch.full_like(group, no_object)
    object_group = truth.image * classes + truth.labels
    truth_columns = truth.boxes.T.double().contiguous()
    for part, row, candidate in candidates(group, object_group, len(truth.ids) * classes):
        columns = boxes[part].T.double()
        overlap = paired_iou(columns.index_select(1, row).T, truth_columns.index_select(1, candidate).T)
        best = torch.zeros(len(part), dtype=torch.float64, device=row.device)
        best.scatter_reduce_(0, row, overlap, "amax")
        # the first of the objects with the largest IoU; order within a group is the order given
        is_best = (overlap == best[row]) & (overlap >= iou)
        candidate = torch.where(is_best, candidate, no_object)
        best_object[part] = best_object[part].scatter_reduce(0, row, candidate, "amin")
    return best_object


def recall_precision(labels: Tensor, tp: Tensor, npos: Tensor) -> tuple[Tensor, Tensor]:
    """Return recall and precision (P,) float64 after each detection.

    labels: (P,) ascending, best score first within a class; tp: (P,) bool, the others are false positives; npos: (C,)
    objects to find.
    """
    counted = torch.bincount(labels, minlength=len(npos))
    found = torch.bincount(labels[tp], minlength=len(npos))
    tp_so_far = tp.cumsum(0) - starts(found)[labels]
    counted_so_far = torch.arange(1, len(labels) + 1, device=labels.device) - starts(counted)[labels]
    return tp_so_far / npos.clamp(min=1)[labels].double(), tp_so_far / counted_so_far.double()


def voc_average(recall: Tensor, precision: Tensor, labels: Tensor, npos: Tensor, metric: str) -> Tensor:
    """Return (C,) AP from the points of true positives alone, the only ones where the precision envelope steps."""
    average = _eleven_points if metric == "voc07" else _area
    return average(recall, precision, labels, npos)


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
