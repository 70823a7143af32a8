"""Average precision and recall of boxes by COCO's rules (Lin et al. 2014; cocodataset.org/#detection-eval).

They are those of pycocotools.cocoeval, its order of ties and its floats included.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.evaluation.flat import Matches, by_class_and_score, candidates, join
from detkit.evaluation.voc import VOCResult
from detkit.structures import DetectionSet, TruthSet

IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
LEVELS = tuple(np.linspace(0, 1, 101).tolist())
# square pixels from and to, both included
AREAS = {"all": (0.0, 1e5**2), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
# detections taken of each class in each image
MOST = (1, 10, 100)
LAST = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class COCOResult:
    """AP and AR of every class, for A areas (all, small, medium, large) and T IoUs (.5, .55, ..., .95).

    precision: (A, T, C) float64, AP with 100 detections of a class in an image. recall: (3, A, T, C) float64, the share
    of objects found with 1, 10 and 100 of them. npos: (A, C) int64, objects to find. Both are NaN for a class without
    such objects, which enters no mean. curves: the curves at IoU .5, all areas; its `ap` is the AP at that IoU.
    """

    images: int
    classes: tuple[str, ...]
    precision: Tensor
    recall: Tensor
    npos: Tensor
    curves: VOCResult

    @property
    def metric(self) -> str:
        """The metric's name."""
        return "coco"

    @property
    def ap(self) -> Tensor:
        """(C,) float64 AP of each class, the mean over IoUs."""
        return self.precision[0].mean(0)

    @property
    def mAP(self) -> float:
        """COCO's AP: the mean over IoUs and classes; NaN where no class has objects."""
        return self.summary["AP"]

    @cached_property
    def summary(self) -> dict[str, float]:
        """COCO's twelve numbers; NaN where there are no such objects, for which pycocotools has -1."""
        ap, ar = self.precision, self.recall
        parts = {
            "AP": ap[0],
            "AP50": ap[0, 0],
            "AP75": ap[0, 5],
            "APs": ap[1],
            "APm": ap[2],
            "APl": ap[3],
            "AR1": ar[0, 0],
            "AR10": ar[1, 0],
            "AR100": ar[2, 0],
            "ARs": ar[2, 1],
            "ARm": ar[2, 2],
            "ARl": ar[2, 3],
        }
        return dict(zip(parts, torch.stack([part.nanmean() for part in parts.values()]).tolist()))

    @property
    def protocol(self) -> str:
        """What the numbers are, for printing beside them."""
        return f"coco (101-point AP), IoU {IOUS[0]:.2f} to {IOUS[-1]:.2f}, difficult and crowd ignored"

    def to_dict(self) -> dict[str, Any]:
        """Return what metrics.json holds of this result: AP of every class, mAP, which is COCO's AP, and its others.

        null stands for NaN, which JSON does not know.
        """
        summary = {name: None if value != value else value for name, value in self.summary.items()}
        classes = [None if value != value else value for value in self.ap.tolist()]
        overall = summary.pop("AP")
        return {
            "metric": self.metric,
            "mAP": overall,
            "AP": dict(zip(self.classes, classes)),
            **summary,
            "iou": f"{IOUS[0]:.2f}:{IOUS[-1]:.2f}",
            "images": self.images,
        }


def coco_ap(detections: DetectionSet, truth: TruthSet) -> COCOResult:
    """Score a data set's detections as pycocotools does.

    The best 100 detections of a class in an image, best score first, each take the free object that they overlap most,
    at an IoU of at least .5 (.55, ..., .95). An object outside the range of areas, and a crowd, is only taken where no
    other is left, and makes the detection neither right nor wrong; so does a detection's own area where it takes none.
    A crowd is taken by any number of detections, and its IoU is the share of the detection that lies in it. AP is the
    mean of the best precision at recalls 0, .01, ..., 1 or beyond, AR the recall.

    `truth.ignore` is pycocotools' iscrowd, the only mark by which it leaves objects out, so VOC's difficult objects are
    crowds here. pycocotools has the same numbers of a file in which their iscrowd is 1; where that is 0, whatever other
    mark they have, it counts them as objects to find. `truth.area` decides on the range of an object, the box's area on
    that of a detection.

    detections, truth: their `ids` and `classes` may differ in order, and are joined by name; an image or a class that
    `detections` does not mention has no detections. Both lie on one device, where all of the work is done. Of equal
    scores those of the first image in `truth.ids` come first, then those given first. All numbers are float64.

    Raises UserError where detections name an image or a class that the truth does not have, or hold a score or box
    that is not finite; ValueError where a label or an image index is out of range.
    """
    labels, image = join(detections, truth)
    order, rank = _best(labels, image, detections.scores, truth)
    labels, scores = labels[order], detections.scores[order]
    group = image[order] * len(truth.classes) + labels
    found, objects = _columns(detections.boxes[order]), _columns(truth.boxes)

    limits = torch.tensor(list(AREAS.values()), dtype=torch.float64, device=found.device).T.unsqueeze(2)
    area = objects[4] if truth.area is None else truth.area.double()
    inside = (found[4] >= limits[0]) & (found[4] <= limits[1])
    ignore = truth.ignore | (area < limits[0]) | (area > limits[1])
    npos = _count(torch.arange(len(AREAS), device=area.device).unsqueeze(1), truth.labels, ~ignore, len(truth.classes))

    cell, taker, taken = _match(*_near(found, objects, group, truth), ignore, truth.ignore, len(order))
    right = ~ignore[cell // len(IOUS), taken]
    precision, recall = _average(cell, taker, right, inside, labels, rank, npos)
    none = (npos == 0).unsqueeze(1)
    return COCOResult(
        images=len(truth.ids),
        classes=truth.classes,
        precision=precision.masked_fill(none, torch.nan),
        recall=recall.masked_fill(none, torch.nan),
        npos=npos,
        curves=_curves(cell, taker, right, inside[0], labels, scores, npos[0], precision[0, 0], truth),
    )


def coco_matches(detections: DetectionSet, truth: TruthSet) -> Matches:
    """Return which object each detection takes by the rules of `coco_ap`, whose errors it raises; IoU .5, all areas."""
    labels, image = join(detections, truth)
    order, _ = _best(labels, image, detections.scores, truth)
    labels = labels[order]
    group = image[order] * len(truth.classes) + labels
    pairs = _near(_columns(detections.boxes[order]), _columns(truth.boxes), group, truth)
    cell, taker, taken = _match(*pairs, truth.ignore.unsqueeze(0), truth.ignore, len(order))
    taker, taken = taker[cell == 0], taken[cell == 0]
    match = torch.full_like(order, len(truth.labels))
    match[taker] = taken
    right, counts = torch.zeros_like(order, dtype=torch.bool), torch.ones_like(order, dtype=torch.bool)
    right[taker] = counts[taker] = ~truth.ignore[taken]
    return Matches(order, labels, match, right, counts)


def coco_average(recall: Tensor, precision: Tensor, group: Tensor, groups: int) -> Tensor:
    """Return (groups,) AP from the points (P,) of true positives: the mean of the precision envelope at LEVELS."""
    level = torch.searchsorted(_tensor(LEVELS, precision), recall, right=True) - 1
    best = precision.new_zeros(groups * len(LEVELS))
    best.scatter_reduce_(0, group * len(LEVELS) + level, precision, "amax")
    return best.view(groups, len(LEVELS)).flip(1).cummax(1).values.mean(1)


def _best(labels: Tensor, image: Tensor, scores: Tensor, truth: TruthSet) -> tuple[Tensor, Tensor]:
    """Return the order of the detections that count, class by class and best score first; and (D,) rank in the image.

    rank: 0 for the best detection of its class in its image.
    """
    order = image.sort(stable=True).indices
    order = order[by_class_and_score(labels[order], scores[order])]
    group = image[order] * len(truth.classes) + labels[order]
    by_group = group.sort(stable=True).indices
    count = torch.bincount(group, minlength=len(truth.ids) * len(truth.classes))
    start = count.cumsum(0) - count
    place = torch.arange(len(order), device=order.device)
    rank = torch.empty_like(order)
    rank[by_group] = place - start[group[by_group]]
    counts = rank < MOST[-1]
    return order[counts], rank[counts]


def _columns(boxes: Tensor) -> Tensor:
    """(N, 4) -> (5, N) float64 left, top, right, bottom, area; as from COCO's left, top, width and height."""
    left, top, right, bottom = boxes.T.double()
    width, height = right - left, bottom - top
    return torch.stack((left, top, left + width, top + height, width * height))


def _near(found: Tensor, objects: Tensor, group: Tensor, truth: TruthSet) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pairs of one group that reach the least IoU: detection, object, IoU (P,); the best IoU first.

    Of equal IoUs the last object comes first, as pycocotools takes it.
    """
    classes = len(truth.classes)
    owner = truth.image * classes + truth.labels
    parts = [(owner[:0], owner[:0], found[0, :0])]
    # a loop over parts of bounded memory, few of which there are
    for part, row, candidate in candidates(group, owner, len(truth.ids) * classes):
        overlap = _iou(found[:, part].index_select(1, row), objects.index_select(1, candidate), truth.ignore[candidate])
        near = (overlap >= IOUS[0]).nonzero().squeeze(1)
        parts.append((part[row[near]], candidate[near], overlap[near]))
    detection, item, overlap = (torch.cat(column).flip(0) for column in zip(*parts))
    order = (-overlap).sort(stable=True).indices
    return detection[order], item[order], overlap[order]


def _iou(a: Tensor, b: Tensor, crowd: Tensor) -> Tensor:
    """IoU of pairs (5, N), (5, N) -> (N,), with a crowd (N,) the share of `a` in it; 0 where they do not meet."""
    width = torch.minimum(a[2], b[2]) - torch.maximum(a[0], b[0])
    height = torch.minimum(a[3], b[3]) - torch.maximum(a[1], b[1])
    shared = width * height
    union = torch.where(crowd, a[4], a[4] + b[4] - shared)
    return torch.where((width > 0) & (height > 0), shared / union, 0.0)


def _match(
    detection: Tensor, item: Tensor, overlap: Tensor, ignore: Tensor, crowd: Tensor, detections: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return who takes what: cell, detection, object (M,), ordered by cell, then detection.

    detection, item, overlap: (P,) pairs, see `_near`; a lower detection has the better score. ignore: (A, G); crowd:
    (G,). A cell is area * T + iou.

    pycocotools lets one detection after the other choose. As all objects prefer the same detections, those of better
    scores, its matching is the only stable one, and proposals with rejections (Gale and Shapley 1962) find it for all
    images, classes, IoUs and areas at once.
    """
    reached = torch.searchsorted(_tensor(IOUS, overlap), overlap, right=True)
    # what a detection prefers: objects that count, then those of larger IoU, which come first already
    order = (detection * 2 + ignore[:, item]).sort(dim=1, stable=True).indices
    steps = torch.arange(len(IOUS), device=order.device).unsqueeze(1)
    areas, objects, pairs = len(ignore), len(crowd), len(detection)
    row = (reached[order].unsqueeze(1) > steps).view(-1).nonzero().squeeze(1)
    cell = row // max(1, pairs)
    pair = order.view(-1).index_select(0, cell // len(IOUS) * pairs + (row - cell * pairs))
    chooser = cell * detections + detection.index_select(0, pair)
    chosen = cell * objects + item.index_select(0, pair)
    # One round for each rejection that follows from another: a few, and no more than a group has detections, since a
    # round settles at least the best of those still open. Only the values can say whether there is one more, so each
    # round waits for the device.
    while True:
        # each detection's first row is its choice among what is left; an object keeps the best of those that chose it
        first = F.pad(chooser[1:] != chooser[:-1], (min(1, len(chooser)), 0), value=True).nonzero().squeeze(1)
        now, wanted = chooser.index_select(0, first), chosen.index_select(0, first)
        keeper = torch.full((areas * len(IOUS) * objects,), LAST, device=now.device)
        keeper.scatter_reduce_(0, wanted, now, "amin").view(areas * len(IOUS), objects).masked_fill_(crowd, LAST)
        stays = (chooser <= keeper.index_select(0, chosen)).nonzero().squeeze(1)
        if len(stays) == len(chooser):
            cell = now // max(1, detections)
            return cell, now - cell * detections, wanted - cell * objects
        chooser, chosen = chooser.index_select(0, stays), chosen.index_select(0, stays)


def _average(
    cell: Tensor, taker: Tensor, right: Tensor, inside: Tensor, labels: Tensor, rank: Tensor, npos: Tensor
) -> tuple[Tensor, Tensor]:
    """Return AP (A, T, C) and recall (3, A, T, C).

    Only detections that take an object are looked at one by one: precision is best at those, and between them the
    counts of the others tell how many went by.
    """
    areas, classes = npos.shape
    shape = areas, len(IOUS), classes
    groups = areas * len(IOUS) * classes
    area = cell // len(IOUS)
    # detections of the class so far that count unless they take an object: those of the range of areas
    seen = F.pad(inside.cumsum(1), (1, 0))
    first = F.pad(torch.bincount(labels, minlength=classes).cumsum(0), (1, 0))[labels[taker]]
    counted = seen[area, taker + 1] - seen[area, first]
    # those that do: one of another area counts after all, one that takes an ignored object does not
    change = F.pad((right.long() - inside[area, taker].long()).cumsum(0), (1, 0))
    group = cell * classes + labels[taker]
    count = torch.bincount(group, minlength=groups)
    counted += change[1:] - change[(count.cumsum(0) - count)[group]]

    group, counted, taker = group[right], counted[right], taker[right]
    count = torch.bincount(group, minlength=groups)
    hits = torch.arange(1, len(group) + 1, device=group.device) - (count.cumsum(0) - count)[group]
    # pycocotools' guard against 0 / 0, which makes 1 / 1 a little less than 1
    precision = hits / (counted.double() + torch.finfo(torch.float64).eps)
    total = npos.unsqueeze(1).expand(shape).reshape(-1).clamp(min=1).double()
    average = coco_average(hits / total[group], precision, group, groups)
    recall = torch.stack([torch.bincount(group[rank[taker] < most], minlength=groups) for most in MOST]) / total
    return average.view(shape), recall.view(len(MOST), *shape)


def _curves(
    cell: Tensor,
    taker: Tensor,
    right: Tensor,
    inside: Tensor,
    labels: Tensor,
    scores: Tensor,
    npos: Tensor,
    ap: Tensor,
    truth: TruthSet,
) -> VOCResult:
    """The curves of the first cell: all areas, least IoU."""
    classes = len(npos)
    taker, right = taker[cell == 0], right[cell == 0]
    counts, hit = inside.clone(), torch.zeros_like(inside)
    counts[taker] = hit[taker] = right
    labels, scores, hit = labels[counts], scores[counts], hit[counts]
    counted = torch.bincount(labels, minlength=classes)
    found = torch.bincount(labels[hit], minlength=classes)
    hits = hit.cumsum(0) - (found.cumsum(0) - found)[labels]
    place = torch.arange(1, len(labels) + 1, device=labels.device) - (counted.cumsum(0) - counted)[labels]
    return VOCResult(
        metric="coco",
        iou=IOUS[0],
        images=len(truth.ids),
        classes=truth.classes,
        ap=ap.masked_fill(npos == 0, torch.nan),
        npos=npos,
        found=found,
        counted=counted,
        recall=hits / npos.clamp(min=1)[labels].double(),
        precision=hits / place.double(),
        scores=scores,
    )


def _count(area: Tensor, labels: Tensor, which: Tensor, classes: int) -> Tensor:
    """Return (A, C) int64: how many of `which` (A, G) are of each class."""
    return torch.bincount((area * classes + labels)[which], minlength=len(area) * classes).view(len(area), classes)


def _tensor(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)
