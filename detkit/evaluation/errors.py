"""What went wrong with each false positive and each missed object, and what each kind of error costs.

After TIDE (Bolya, Foley, Hays and Hoffman, ECCV 2020, sections 2.2 and 2.3), with its thresholds.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detkit.evaluation.coco import coco_average, coco_matches
from detkit.evaluation.flat import Matches, by_class_and_score, candidates, join, plain
from detkit.evaluation.voc import recall_precision, voc_average, voc_matches
from detkit.ops.boxes import paired_iou
from detkit.structures import DetectionSet, TruthSet

FOREGROUND, BACKGROUND = 0.5, 0.1  # t_f and t_b
# kinds of detections, of which the last is neither right nor wrong
STATES = ("right", "localisation", "class", "duplicate", "background", "both", "ignored")
RIGHT, LOCALISATION, CLASS, DUPLICATE, EMPTY, BOTH, IGNORED = range(len(STATES))
KINDS = ("localisation", "class", "both", "duplicate", "background", "missed")
ORACLES = (*KINDS, "false positives", "false negatives")


@dataclass(frozen=True)
class ErrorAnalysis:
    """The kind of every detection and object, and AP with each kind of error fixed; at IoU .5.

    metric: voc07, voc or coco. ap: (C,) float64 as it is; fixed: (8, C) with each of ORACLES; both NaN for a class
    without objects to find. npos: (C,) int64. state: (D,) int64 index into STATES, of each detection in the order
    given. object: (D,) the object that a detection took, or should have taken (localisation, class, duplicate); -1 for
    others. near: (D,) float64 best IoU with an object to find of the detection's class. found, missed: (G,) bool; an
    object that is neither is to be ignored, or lost by a localisation or class error. reach: (G,) float64 best IoU of
    an object with a detection of its class.
    """

    metric: str
    classes: tuple[str, ...]
    ap: Tensor
    fixed: Tensor
    npos: Tensor
    state: Tensor
    object: Tensor
    near: Tensor
    found: Tensor
    missed: Tensor
    reach: Tensor

    @property
    def mAP(self) -> float:
        """Mean over the classes that have objects to find; NaN where none has."""
        return float(self.ap.nanmean())

    @property
    def cost(self) -> Tensor:
        """(8,) float64, by how much mAP rises with each of ORACLES (TIDE's dAP); NaN where no class has objects."""
        return self.fixed.nanmean(1) - self.ap.nanmean()

    @property
    def counts(self) -> Tensor:
        """(6,) int64, how many errors there are of each of KINDS."""
        states = torch.bincount(self.state, minlength=len(STATES))
        return torch.stack([*(states[STATES.index(kind)] for kind in KINDS[:-1]), self.missed.sum()])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data; null stands for NaN."""
        gain = (self.fixed - self.ap).tolist()
        return {
            "metric": self.metric,
            "mAP50": plain(self.mAP),
            "foreground_iou": FOREGROUND,
            "background_iou": BACKGROUND,
            "counts": {
                "right": int(self.found.sum()),
                **dict(zip(KINDS, self.counts.tolist())),
                "ignored": int((self.state == IGNORED).sum()),
            },
            "mAP_cost": dict(zip(ORACLES, map(plain, self.cost.tolist()))),
            "AP_cost": {name: dict(zip(ORACLES, map(plain, column))) for name, column in zip(self.classes, zip(*gain))},
        }


def match(detections: DetectionSet, truth: TruthSet, metric: str) -> Matches:
    """Return which object each detection takes at IoU .5 by the rules of `metric`: voc07, voc or coco."""
    return coco_matches(detections, truth) if metric == "coco" else voc_matches(detections, truth)


def average(labels: Tensor, tp: Tensor, npos: Tensor, metric: str) -> Tensor:
    """Return (C,) float64 AP, 0 for a class without true positives. Arguments as in `recall_precision`."""
    recall, precision = recall_precision(labels, tp, npos)
    recall, precision, labels = recall[tp], precision[tp], labels[tp]
    if metric != "coco":
        return voc_average(recall, precision, labels, npos, metric)
    # pycocotools' guard against 0 / 0 again, which shows in the last digits
    tp_so_far = recall * npos[labels]
    guarded = tp_so_far / (tp_so_far / precision + torch.finfo(torch.float64).eps)
    return coco_average(recall, guarded, labels, len(npos))


def analyse_errors(detections: DetectionSet, truth: TruthSet, metric: str) -> ErrorAnalysis:
    """Tell what went wrong, by TIDE's definitions and, as to what is right, by the metric's own rules at IoU .5.

    Only objects to find count; difficult ones and crowds, and detections that the metric leaves out for them, are no
    errors. A false positive, with its best IoU over objects of its class and over those of others, is the first of
    these that fits (the order of the authors' code, since the paper's conditions overlap): localisation, its class in
    [.1, .5); class, another class >= .5; duplicate, its class >= .5 (a better detection has that object); background,
    none > .1; both, any other. Missed is an object that no detection took and that is not the nearest of any
    localisation or class error.

    Costs, each kind fixed alone: a localisation or class error gets its object's box or class, and of all that then
    claim an object, its true positive among them, only the best score stays; both, duplicate and background errors are
    dropped; missed objects are taken out of those to find; so are all that were not found for `false negatives`, and
    `false positives` drops all. A class of which nothing is left to find stays in the mean, with AP 0.

    Raises UserError and ValueError as `voc_ap` does. Batched, on the device of the sets.
    """
    labels, image = join(detections, truth)
    matches = match(detections, truth, metric)
    order, objects = matches.order, len(truth.labels)
    npos = torch.bincount(truth.labels[~truth.ignore], minlength=len(truth.classes))
    best, nearest, reach = _nearest(detections.boxes, labels, image, truth)
    same, other = best[:, order]
    same_object, other_object = nearest[:, order]

    kind = torch.full_like(order, BOTH)
    # from the last condition to the first, which is the one that stays
    kind[torch.maximum(same, other) <= BACKGROUND] = EMPTY
    kind[same >= FOREGROUND] = DUPLICATE
    kind[other >= FOREGROUND] = CLASS
    kind[(same >= BACKGROUND) & (same < FOREGROUND)] = LOCALISATION
    state = torch.where(matches.fp, kind, torch.where(matches.tp, RIGHT, IGNORED))
    item = torch.where(state == CLASS, other_object, same_object)
    item = torch.where((state == EMPTY) | (state == BOTH) | (state == IGNORED), objects, item)
    item = torch.where(state == RIGHT, matches.object, item)

    found = torch.bincount(item[state == RIGHT], minlength=objects) > 0
    lost = torch.bincount(item[(state == LOCALISATION) | (state == CLASS)], minlength=objects) > 0
    missed = ~(found | lost | truth.ignore)
    ap, fixed = _oracles(detections.scores[order], matches.labels, state, item, missed, truth, npos, metric)
    # from the metric's order back to the order given; what the metric does not look at is ignored
    return ErrorAnalysis(
        metric=metric,
        classes=truth.classes,
        ap=ap,
        fixed=fixed,
        npos=npos,
        state=torch.full_like(labels, IGNORED).scatter(0, order, state),
        object=torch.full_like(labels, -1).scatter(0, order, torch.where(item == objects, -1, item)),
        near=best[0],
        found=found,
        missed=missed,
        reach=reach,
    )


def _nearest(boxes: Tensor, labels: Tensor, image: Tensor, truth: TruthSet) -> tuple[Tensor, Tensor, Tensor]:
    """Compare detections with all objects of their images; of equal IoUs the first object is taken.

    Returns each detection's best IoU with an object to find (2, D), in row 0 of its class and in row 1 of other
    classes; that object (2, D), len(truth.labels) where the IoU is 0; and (G,) the best IoU of each object with a
    detection of its class.
    """
    objects = len(truth.labels)
    # ignored objects lie in images that have no detections
    object_image = truth.image + truth.ignore * len(truth.ids)
    best = torch.zeros(2, len(labels), dtype=torch.float64, device=boxes.device)
    item = torch.full((2, len(labels)), objects, device=boxes.device)
    reach = torch.zeros(objects, dtype=torch.float64, device=boxes.device)
    truth_columns = truth.boxes.T.double().contiguous()
    for part, row, candidate in candidates(image, object_image, 2 * len(truth.ids)):
        columns = boxes[part].T.double()
        iou = paired_iou(columns.index_select(1, row).T, truth_columns.index_select(1, candidate).T)
        is_other = (labels[part][row] != truth.labels[candidate]).long()
        cell = is_other * len(part) + row
        best_iou = iou.new_zeros(2 * len(part)).scatter_reduce_(0, cell, iou, "amax")
        is_best = (iou == best_iou[cell]) & (iou > 0)
        best_item = item.new_full((2 * len(part),), objects)
        best_item.scatter_reduce_(0, cell, torch.where(is_best, candidate, objects), "amin")
        best[:, part] = best_iou.view(2, -1)
        item[:, part] = best_item.view(2, -1)
        reach.scatter_reduce_(0, candidate, torch.where(is_other == 0, iou, 0.0), "amax")
    return best, item, reach


def _oracles(
    scores: Tensor,
    labels: Tensor,
    state: Tensor,
    item: Tensor,
    missed: Tensor,
    truth: TruthSet,
    npos: Tensor,
    metric: str,
) -> tuple[Tensor, Tensor]:
    """Return AP (C,) as it is and (8, C) with each of ORACLES. All (K,) tensors are in the order of Matches."""
    tp, counted = state == RIGHT, state != IGNORED
    # each detection's rank among those of all classes
    rank = torch.empty_like(state)
    rank[by_class_and_score(torch.zeros_like(labels), scores)] = torch.arange(len(state), device=state.device)

    def ap_of(labels: Tensor, tp: Tensor, keep: Tensor, npos: Tensor = npos) -> Tensor:
        kept_labels, kept_tp = labels[keep], tp[keep]
        order = by_class_and_score(kept_labels, scores[keep])
        return average(kept_labels[order], kept_tp[order], npos, metric)

    def moved(kind: int) -> Tensor:
        """AP where errors of one kind get their object's box or class; the best of those that claim an object stays."""
        claims = tp | (state == kind)
        best = torch.full((len(missed) + 1,), len(state), device=state.device)
        best.scatter_reduce_(0, item[claims], rank[claims], "amin")
        wins = claims & (best[item] == rank)
        # the class of the object, which a true positive has already
        object_label = torch.cat((truth.labels, truth.labels.new_zeros(1)))[item]
        return ap_of(torch.where(claims, object_label, labels), wins, counted & (wins | ~claims))

    classes = len(npos)
    lost = torch.bincount(truth.labels[missed], minlength=classes)
    found = torch.bincount(labels[tp], minlength=classes)
    fixed = [  # in the order of ORACLES
        moved(LOCALISATION),
        moved(CLASS),
        *(ap_of(labels, tp, counted & (state != kind)) for kind in (BOTH, DUPLICATE, EMPTY)),
        ap_of(labels, tp, counted, npos - lost),
        ap_of(labels, tp, tp),
        ap_of(labels, tp, counted, found),
    ]
    none = npos == 0
    ap = ap_of(labels, tp, counted).masked_fill(none, torch.nan)
    return ap, torch.stack(fixed).masked_fill(none, torch.nan)


def classless(objects: Any) -> Any:
    """Return a DetectionSet or TruthSet in which all are of one class."""
    return replace(objects, labels=torch.zeros_like(objects.labels), classes=("object",))
