"""What went wrong with each false positive and each missed object, and what each kind of error costs.

After TIDE (Bolya, Foley, Hays and Hoffman, ECCV 2020, sections 2.2 and 2.3), with its thresholds.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detkit.evaluation.coco import coco_average, coco_matches
from detkit.evaluation.flat import Matches, by_class_and_score, candidates, join
from detkit.evaluation.voc import recall_precision, voc_average, voc_matches
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
        names = dict(zip(ORACLES, self.cost.tolist()))
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
            "mAP_cost": {name: plain(value) for name, value in names.items()},
            "AP_cost": {name: dict(zip(ORACLES, map(plain, column))) for name, column in zip(self.classes, zip(*gain))},
        }


def plain(value: float) -> float | None:
    """NaN -> None, which JSON knows."""
    return None if value != value else value


def match(detections: DetectionSet, truth: TruthSet, metric: str) -> Matches:
    """Return which object each detection takes at IoU .5 by the rules of `metric`: voc07, voc or coco."""
    return coco_matches(detections, truth) if metric == "coco" else voc_matches(detections, truth)


def average(labels: Tensor, right: Tensor, npos: Tensor, metric: str) -> Tensor:
    """Return (C,) float64 AP, 0 for a class without true positives.

    labels: (P,) ascending, best score first within a class; right: (P,) bool; npos: (C,) objects to find.
    """
    recall, precision = recall_precision(labels, right, npos)
    points = recall[right], precision[right], labels[right]
    if metric != "coco":
        return voc_average(*points, npos, metric)
    # pycocotools' guard against 0 / 0 again, which shows in the last digits
    hits = points[0] * npos[points[2]]
    guarded = hits / (hits / points[1] + torch.finfo(torch.float64).eps)
    return coco_average(points[0], guarded, points[2], len(npos))


def analyse_errors(detections: DetectionSet, truth: TruthSet, metric: str) -> ErrorAnalysis:
    """Tell what went wrong, by TIDE's definitions and, as to what is right, by the metric's own rules at IoU .5.

    Only objects to find count; difficult ones and crowds, and detections that the metric leaves out for them, are no
    errors. A false positive, with its best IoU over objects of its own class and over those of others, is the first of
    these that fits (the order of the authors' code, since the paper's conditions overlap): localisation, own class in
    [.1, .5); class, another class >= .5; duplicate, own class >= .5 (a better detection has that object); background,
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
    own, own_object, other, other_object, reach = _nearest(detections.boxes, labels, image, truth)

    wrong = matches.counts & ~matches.right
    state = torch.full_like(order, BOTH)
    near, far = own[order], other[order]
    # from the last to be asked to the first
    state[torch.maximum(near, far) <= BACKGROUND] = EMPTY
    state[near >= FOREGROUND] = DUPLICATE
    state[far >= FOREGROUND] = CLASS
    state[(near >= BACKGROUND) & (near < FOREGROUND)] = LOCALISATION
    state = torch.where(wrong, state, torch.where(matches.right, RIGHT, IGNORED))
    item = torch.where(state == CLASS, other_object[order], own_object[order])
    item = torch.where((state == EMPTY) | (state == BOTH) | (state == IGNORED), objects, item)
    item = torch.where(state == RIGHT, matches.object, item)

    found = _marks(item[state == RIGHT], objects)
    lost = _marks(item[(state == LOCALISATION) | (state == CLASS)], objects)
    missed = ~(found | lost | truth.ignore)
    ap, fixed = _oracles(detections.scores[order], matches.labels, state, item, missed, truth, npos, metric)
    every = torch.full_like(labels, IGNORED)
    every[order] = state
    refers = torch.full_like(labels, objects)
    refers[order] = item
    return ErrorAnalysis(
        metric=metric,
        classes=truth.classes,
        ap=ap,
        fixed=fixed,
        npos=npos,
        state=every,
        object=torch.where(refers == objects, -1, refers),
        near=own,
        found=found,
        missed=missed,
        reach=reach,
    )


def _marks(index: Tensor, count: int) -> Tensor:
    marks = torch.zeros(count, dtype=torch.bool, device=index.device)
    marks[index] = True
    return marks


def _nearest(
    boxes: Tensor, labels: Tensor, image: Tensor, truth: TruthSet
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return each detection's best IoU and its object, of the own class, then of others; and each object's best IoU.

    (D,) twice two, then (G,). Only objects to find count, for detections; the first of equal ones is taken. The object
    is len(truth.labels) where the IoU is 0.
    """
    objects = len(truth.labels)
    owner = truth.image + truth.ignore * len(truth.ids)  # ignored objects lie in images that have no detections
    best = torch.zeros(2, len(labels), dtype=torch.float64, device=boxes.device)
    item = torch.full((2, len(labels)), objects, device=boxes.device)
    reach = torch.zeros(objects, dtype=torch.float64, device=boxes.device)
    for part, row, candidate in candidates(image, owner, 2 * len(truth.ids)):
        overlap = pair_iou(boxes[part].double()[row], truth.boxes.double()[candidate])
        other = (labels[part][row] != truth.labels[candidate]).long()
        place = other * len(part) + row
        top = overlap.new_zeros(2 * len(part)).scatter_reduce_(0, place, overlap, "amax")
        first = torch.where((overlap == top[place]) & (overlap > 0), candidate, objects)
        chosen = item.new_full((2 * len(part),), objects).scatter_reduce_(0, place, first, "amin")
        best[:, part], item[:, part] = top.view(2, -1), chosen.view(2, -1)
        reach.scatter_reduce_(0, candidate, torch.where(other == 0, overlap, 0.0), "amax")
    return best[0], item[0], best[1], item[1], reach


def pair_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of pairs: (N, 4), (N, 4) float64 -> (N,); 0 where they do not meet."""
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    return torch.where(shared > 0, shared / union, 0.0)


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
    right, counts = state == RIGHT, state != IGNORED

    def measure(labels: Tensor, right: Tensor, keep: Tensor, npos: Tensor = npos) -> Tensor:
        kept, right = labels[keep], right[keep]
        order = by_class_and_score(kept, scores[keep])
        return average(kept[order], right[order], npos, metric)

    def moved(kind: int) -> Tensor:
        claims = right | (state == kind)
        rank = torch.empty_like(state)
        rank[by_class_and_score(torch.zeros_like(labels), scores)] = torch.arange(len(state), device=state.device)
        first = torch.full((len(missed) + 1,), len(state), device=state.device)
        first.scatter_reduce_(0, item[claims], rank[claims], "amin")
        wins = claims & (first[item] == rank)
        # the class of the object, which a true positive has already
        owner = torch.cat((truth.labels, truth.labels.new_zeros(1)))[item]
        return measure(torch.where(claims, owner, labels), wins, counts & (wins | ~claims))

    classes = len(npos)
    lost = torch.bincount(truth.labels[missed], minlength=classes)
    hits = torch.bincount(labels[right], minlength=classes)
    fixed = [
        moved(LOCALISATION),
        moved(CLASS),
        *(measure(labels, right, counts & (state != kind)) for kind in (BOTH, DUPLICATE, EMPTY)),
        measure(labels, right, counts, npos - lost),
        measure(labels, right, right),
        measure(labels, right, counts, hits),
    ]
    none = npos == 0
    ap = measure(labels, right, counts).masked_fill(none, torch.nan)
    return ap, torch.stack(fixed).masked_fill(none, torch.nan)


def classless(objects: Any) -> Any:
    """Return a DetectionSet or TruthSet in which all are of one class."""
    return replace(objects, labels=torch.zeros_like(objects.labels), classes=("object",))
