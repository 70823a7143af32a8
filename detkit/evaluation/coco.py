"""Average precision and recall of boxes by COCO's rules (Lin et al. 2014; cocodataset.org/#detection-eval).

They are those of pycocotools.cocoeval, its order of ties and its floats included.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detkit import rle
from detkit.evaluation.flat import Matches, by_class_and_score, candidates, join, plain, starts
from detkit.evaluation.voc import VOCResult, voc_result
from detkit.ops.boxes import paired_iou
from detkit.structures import DetectionSet, TruthSet

IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
RECALLS = tuple(np.linspace(0, 1, 101).tolist())
# square pixels from and to, both included
AREAS = {"all": (0.0, 1e5**2), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
MAX_DETECTIONS = (1, 10, 100)  # of each class in each image
# COCO's twelve, in pycocotools' order
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
NOBODY = torch.iinfo(torch.int64).max  # after all detections


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
    metric: ClassVar[str] = "coco"

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
        parts = [ap[0], ap[0, 0], ap[0, 5], *ap[1:], *ar[:, 0], *ar[2, 1:]]  # NUMBERS
        return dict(zip(NUMBERS, torch.stack([part.nanmean() for part in parts]).tolist()))

    @property
    def protocol(self) -> str:
        """What the numbers are, for printing beside them."""
        return f"coco (101-point AP), IoU {IOUS[0]:.2f} to {IOUS[-1]:.2f}, difficult and crowd ignored"

    def to_dict(self) -> dict[str, Any]:
        """Return what metrics.json holds of this result: AP of every class, mAP, which is COCO's AP, and its others.

        null stands for NaN, which JSON does not know.
        """
        summary = {name: plain(value) for name, value in self.summary.items()}
        return {
            "metric": self.metric,
            "mAP": summary.pop("AP"),
            "AP": dict(zip(self.classes, map(plain, self.ap.tolist()))),
            **summary,
            "iou": f"{IOUS[0]:.2f}:{IOUS[-1]:.2f}",
            "images": self.images,
        }


def coco_ap(detections: DetectionSet, truth: TruthSet, masks: bool = False) -> COCOResult:
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

    masks: whether the IoU and a detection's area are those of the masks, which both sets then have.

    detections, truth, and the errors raised: as in `voc_ap`. Of equal scores those of the first image in `truth.ids`
    come first, then those given first. All numbers are float64.
    """
    classes = len(truth.classes)
    labels, image = join(detections, truth)
    order, rank = _best(labels, image, detections.scores, truth)
    labels = labels[order]
    group = image[order] * classes + labels
    boxes, objects = _columns(detections.boxes[order]), _columns(truth.boxes)
    if masks:
        boxes[4] = boxes.new_tensor(rle.area(detections.masks or ()))[order]

    low, high = _tensor(tuple(AREAS.values()), boxes).T.unsqueeze(2)  # (A, 1) each
    area = objects[4] if truth.area is None else truth.area.double()
    inside = (boxes[4] >= low) & (boxes[4] <= high)  # (A, D)
    ignore = truth.ignore | (area < low) | (area > high)  # (A, G)
    npos = torch.stack([torch.bincount(truth.labels[~row], minlength=classes) for row in ignore])

    pairs = _mask_pairs(detections, order, group, truth) if masks else _pairs(boxes, objects, group, truth)
    matched = _match(pairs, ignore, truth.ignore, len(order))
    tp = ~ignore[matched.cell // len(IOUS), matched.object]
    precision, recall = _average(matched, tp, inside, labels, rank, npos)
    matches = _matches(matched, ignore[0], order, labels)
    matches = matches._replace(fp=matches.fp & inside[0])
    none = (npos == 0).unsqueeze(1)
    return COCOResult(
        images=len(truth.ids),
        classes=truth.classes,
        precision=precision.masked_fill(none, torch.nan),
        recall=recall.masked_fill(none, torch.nan),
        npos=npos,
        curves=voc_result(matches, detections.scores, npos[0], truth, "coco", IOUS[0], precision[0, 0]),
    )


def coco_matches(detections: DetectionSet, truth: TruthSet) -> Matches:
    """Return which object each detection takes by the rules of `coco_ap`, whose errors it raises; IoU .5, all areas."""
    labels, image = join(detections, truth)
    order, _ = _best(labels, image, detections.scores, truth)
    labels = labels[order]
    group = image[order] * len(truth.classes) + labels
    pairs = _pairs(_columns(detections.boxes[order]), _columns(truth.boxes), group, truth)
    matched = _match(pairs, truth.ignore.unsqueeze(0), truth.ignore, len(order))
    return _matches(matched, truth.ignore, order, labels)


def coco_average(recall: Tensor, precision: Tensor, group: Tensor, groups: int) -> Tensor:
    """Return (groups,) AP from the points (P,) of true positives: the mean of the precision envelope at RECALLS."""
    level = torch.searchsorted(_tensor(RECALLS, precision), recall, right=True) - 1
    best = precision.new_zeros(groups * len(RECALLS))
    best.scatter_reduce_(0, group * len(RECALLS) + level, precision, "amax")
    return best.view(groups, len(RECALLS)).flip(1).cummax(1).values.mean(1)


def _best(labels: Tensor, image: Tensor, scores: Tensor, truth: TruthSet) -> tuple[Tensor, Tensor]:
    """Return the order of the detections that count, class by class and best score first; and (D,) rank in the image.

    rank: 0 for the best detection of its class in its image.
    """
    order = image.sort(stable=True).indices
    order = order[by_class_and_score(labels[order], scores[order])]
    group = image[order] * len(truth.classes) + labels[order]
    by_group = group.sort(stable=True).indices
    count = torch.bincount(group, minlength=len(truth.ids) * len(truth.classes))
    rank = torch.empty_like(order)
    rank[by_group] = torch.arange(len(order), device=order.device) - starts(count)[group[by_group]]
    counts = rank < MAX_DETECTIONS[-1]
    return order[counts], rank[counts]


def _columns(boxes: Tensor) -> Tensor:
    """(N, 4) -> (5, N) float64 left, top, right, bottom, area; as from COCO's left, top, width and height."""
    left, top, right, bottom = boxes.T.double()
    width, height = right - left, bottom - top
    return torch.stack((left, top, left + width, top + height, width * height))


class Pairs(NamedTuple):
    """Detections and objects of one group that may be matched, the best IoU first: (P,) each.

    A lower number of a detection is a better score. Of equal IoUs the last object comes first, as pycocotools takes it.
    """

    detection: Tensor
    object: Tensor
    iou: Tensor


class Matched(NamedTuple):
    """Which detection takes which object in which cell, (M,) each, ordered by cell, then detection.

    A cell is area * T + iou: matching is done for each range of areas and each IoU.
    """

    cell: Tensor
    detection: Tensor
    object: Tensor


def _pairs(boxes: Tensor, objects: Tensor, group: Tensor, truth: TruthSet) -> Pairs:
    """Return the pairs of detections and objects, both (5, N) of `_columns`, that reach the first of IOUS."""
    classes = len(truth.classes)
    object_group = truth.image * classes + truth.labels
    parts = [(object_group[:0], object_group[:0], boxes[0, :0])]
    # a loop over parts of bounded memory, few of which there are
    for part, row, candidate in candidates(group, object_group, len(truth.ids) * classes):
        a = boxes[:, part].index_select(1, row)
        b = objects.index_select(1, candidate)
        iou = paired_iou(a[:4].T, b[:4].T, areas=(a[4], b[4]), crowd=truth.ignore[candidate])
        near = (iou >= IOUS[0]).nonzero().squeeze(1)
        parts.append((part[row[near]], candidate[near], iou[near]))
    return _best_first(parts)


def _mask_pairs(detections: DetectionSet, order: Tensor, group: Tensor, truth: TruthSet) -> Pairs:
    """Return the pairs whose masks reach the first of IOUS; order, group: of the detections, see `coco_ap`."""
    members: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for kind, numbers in enumerate((group, truth.image * len(truth.classes) + truth.labels)):
        for row, key in enumerate(numbers.tolist()):
            members[key][kind].append(row)
    found: list[rle.RLE] = [*(detections.masks or ())]
    known: list[rle.RLE] = [*(truth.masks or ())]
    crowd = truth.ignore.tolist()
    place = order.tolist()
    none = group[:0]
    parts = [(none, none, none.double())]
    for mine, theirs in members.values():  # run lengths are compared by pycocotools, a group at a time
        if mine and theirs:
            iou = rle.iou([found[place[i]] for i in mine], [known[j] for j in theirs], [crowd[j] for j in theirs])
            row, column = (iou >= IOUS[0]).nonzero()
            columns = np.array(mine)[row], np.array(theirs)[column], iou[row, column]
            parts.append(tuple(torch.from_numpy(values).to(group.device) for values in columns))  # pyright: ignore
    return _best_first(parts)


def _best_first(parts: list[tuple[Tensor, Tensor, Tensor]]) -> Pairs:
    """Detections, objects and IoUs, those of a detection one after the other, its objects in the order given."""
    detection, item, iou = (torch.cat(column).flip(0) for column in zip(*parts))
    order = (-iou).sort(stable=True).indices
    return Pairs(detection[order], item[order], iou[order])


def _match(pairs: Pairs, ignore: Tensor, crowd: Tensor, detections: int) -> Matched:
    """Match detections and objects in all cells. ignore: (A, G) bool; crowd: (G,) bool.

    pycocotools lets one detection after the other choose. As all objects prefer the same detections, those of better
    scores, its matching is the only stable one, and proposals with rejections (Gale and Shapley 1962) find it for all
    images, classes, IoUs and areas at once.
    """
    areas, objects = ignore.shape
    cell, pair = _preferences(pairs, ignore)
    # numbers that tell a detection or an object in one cell from the same in another
    chooser = cell * detections + pairs.detection.index_select(0, pair)
    chosen = cell * objects + pairs.object.index_select(0, pair)
    # One round for each rejection that follows from another: a few, and no more than a group has detections, since a
    # round settles at least the best of those still open. Only the values can say whether there is one more, so each
    # round waits for the device.
    while True:
        # each detection asks for its first choice among what is left
        is_first = F.pad(chooser[1:] != chooser[:-1], (min(1, len(chooser)), 0), value=True)
        first = is_first.nonzero().squeeze(1)
        asking, asked = chooser.index_select(0, first), chosen.index_select(0, first)
        # an object keeps the best of those that ask for it; a crowd keeps all
        keeper = torch.full((areas * len(IOUS) * objects,), NOBODY, device=asked.device)
        keeper.scatter_reduce_(0, asked, asking, "amin")
        keeper.view(areas * len(IOUS), objects).masked_fill_(crowd, NOBODY)
        # all others strike the object off their lists
        listed = (chooser <= keeper.index_select(0, chosen)).nonzero().squeeze(1)
        if len(listed) == len(chooser):
            cell = asking // max(1, detections)
            return Matched(cell, asking - cell * detections, asked - cell * objects)
        chooser, chosen = chooser.index_select(0, listed), chosen.index_select(0, listed)


def _preferences(pairs: Pairs, ignore: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pairs that reach a cell's IoU, (N,) cell and (N,) pair, by cell and detection, its first choice first.

    A detection prefers objects that count, and of these larger IoUs, in which order the pairs are.
    """
    count = len(pairs.iou)
    thresholds_reached = torch.searchsorted(_tensor(IOUS, pairs.iou), pairs.iou, right=True)
    order = (pairs.detection * 2 + ignore[:, pairs.object]).sort(dim=1, stable=True).indices  # (A, P)
    threshold = torch.arange(len(IOUS), device=order.device).unsqueeze(1)
    reached = thresholds_reached[order].unsqueeze(1) > threshold  # (A, T, P)
    flat = reached.view(-1).nonzero().squeeze(1)
    cell = flat // max(1, count)
    area = cell // len(IOUS)
    return cell, order.view(-1).index_select(0, area * count + (flat - cell * count))


def _average(
    matched: Matched, tp: Tensor, inside: Tensor, labels: Tensor, rank: Tensor, npos: Tensor
) -> tuple[Tensor, Tensor]:
    """Return AP (A, T, C) and recall (3, A, T, C).

    tp: (M,) bool, whether what is matched counts. inside: (A, D) bool, whether a detection's own area is in the range;
    labels, rank: (D,) of the detections; npos: (A, C).

    Only matched detections are looked at one by one: precision is best at true positives, and how many false ones went
    by before them is a difference of two running counts.
    """
    cell, detection, _ = matched
    areas, classes = npos.shape
    shape = areas, len(IOUS), classes
    groups = areas * len(IOUS) * classes
    area = cell // len(IOUS)
    # how many of the class so far would count if none was matched: those of the range of areas
    inside_before = F.pad(inside.cumsum(1), (1, 0))
    first_of_class = F.pad(torch.bincount(labels, minlength=classes).cumsum(0), (1, 0))[labels[detection]]
    counted = inside_before[area, detection + 1] - inside_before[area, first_of_class]
    # a match changes that: one of another area counts after all, one of an ignored object does not
    change = F.pad((tp.long() - inside[area, detection].long()).cumsum(0), (1, 0))
    group = cell * classes + labels[detection]
    first_of_group = starts(torch.bincount(group, minlength=groups))[group]
    counted += change[1:] - change[first_of_group]

    group, counted, detection = group[tp], counted[tp], detection[tp]
    tp_so_far = torch.arange(1, len(group) + 1, device=group.device)
    tp_so_far -= starts(torch.bincount(group, minlength=groups))[group]
    # pycocotools' guard against 0 / 0, which makes 1 / 1 a little less than 1
    precision = tp_so_far / (counted.double() + torch.finfo(torch.float64).eps)
    total = npos.unsqueeze(1).expand(shape).reshape(-1).clamp(min=1).double()
    average = coco_average(tp_so_far / total[group], precision, group, groups)
    found = [torch.bincount(group[rank[detection] < limit], minlength=groups) for limit in MAX_DETECTIONS]
    return average.view(shape), (torch.stack(found) / total).view(len(MAX_DETECTIONS), *shape)


def _matches(matched: Matched, ignore: Tensor, order: Tensor, labels: Tensor) -> Matches:
    """What is matched in the first cell: all areas, lowest IoU. ignore: (G,); order, labels: (D,), as in Matches."""
    first = matched.cell == 0
    match = torch.full_like(order, len(ignore))
    match[matched.detection[first]] = matched.object[first]
    fp = match == len(ignore)
    return Matches(order, labels, match, tp=~fp & ~F.pad(ignore, (0, 1))[match], fp=fp)


def _tensor(values: tuple, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)
