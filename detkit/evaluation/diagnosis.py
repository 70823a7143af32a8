"""Beside the kinds of errors: AP of parts of the objects, confusion of classes, calibration of scores."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detkit.evaluation.coco import AREAS, coco_ap
from detkit.evaluation.errors import IGNORED, RIGHT, ErrorAnalysis, average, classless, match
from detkit.evaluation.flat import candidates, join, plain
from detkit.evaluation.voc import voc_matches
from detkit.ops.boxes import paired_iou
from detkit.structures import DetectionSet, TruthSet

BINS = 10
# by the largest IoU with another object: from, and below; NMS at the papers' .3 loses one of two crowded objects
CROWDING = {"alone": (0.0, 1e-9), "overlapping": (1e-9, 0.3), "crowded": (0.3, 1.1)}


@dataclass(frozen=True)
class Group:
    """How well some of the objects are found. AP, recall: means over classes that have such; NaN where none has."""

    name: str
    objects: int
    ap: float
    recall: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"name": self.name, "objects": self.objects, "AP": plain(self.ap), "recall": plain(self.recall)}


@dataclass(frozen=True)
class Calibration:
    """Scores against precision, in BINS bins of equal width; edges between them belong to the upper one.

    count: (BINS,) int64 detections; score, precision: (BINS,) float64 means, NaN for an empty bin. error: the expected
    calibration error, NaN where no detection counts.
    """

    count: Tensor
    score: Tensor
    precision: Tensor
    error: float

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        columns = (self.count.tolist(), self.score.tolist(), self.precision.tolist())
        bins = [{"detections": n, "score": plain(s), "precision": plain(p)} for n, s, p in zip(*columns)]
        return {"expected_calibration_error": plain(self.error), "bins": bins}


def object_groups(detections: DetectionSet, truth: TruthSet, metric: str) -> list[Group]:
    """Return AP (IoU .5) of objects by area, by crowding, and by what the annotation says: truncated, difficult.

    Areas are COCO's: small below 32^2 square pixels of the image, medium to 96^2, large above. Objects of other groups
    are ignored. Between sizes a false positive belongs to its own area's group, as by COCO's rules; between flags, and
    by crowding, of which it has none, it counts in all groups, so that a small group's AP is lower: compare recall
    there. Crowding is that of CROWDING, by `crowding`; left out where no object overlaps another.
    """
    area = (truth.boxes[:, 2:] - truth.boxes[:, :2]).double().prod(1) if truth.area is None else truth.area.double()
    detection_area = (detections.boxes[:, 2:] - detections.boxes[:, :2]).double().prod(1)
    all_detections = torch.ones_like(detection_area, dtype=torch.bool)
    if metric == "coco":  # its own, since an object of another area is not taken by many as a crowd is
        result = coco_ap(detections, truth)
        ap, recall = (values[..., 0, :].nanmean(-1).tolist() for values in (result.precision, result.recall[-1]))
        objects = result.npos.sum(1).tolist()
        groups = [Group(name, objects[index], ap[index], recall[index]) for index, name in enumerate(AREAS)]
    else:
        groups = [
            _group(name, detections, truth, metric, _between(area, limits), _between(detection_area, limits))
            for name, limits in AREAS.items()
        ]
    overlap = crowding(truth)
    if overlap.any():
        for name, (low, high) in CROWDING.items():
            groups.append(_group(name, detections, truth, metric, (overlap >= low) & (overlap < high), all_detections))
    if truth.truncated is not None:
        groups.append(_group("truncated", detections, truth, metric, truth.truncated, all_detections))
        groups.append(_group("not truncated", detections, truth, metric, ~truth.truncated, all_detections))
    if truth.difficult is not None and truth.difficult.any():
        found = replace(truth, ignore=truth.ignore & ~truth.difficult)
        groups.append(_group("difficult", detections, found, metric, truth.difficult, all_detections))
    return groups


def crowding(truth: TruthSet) -> Tensor:
    """Return (G,) float64, the largest IoU of each object with another of its image, of any class.

    Difficult objects are others, too; COCO's crowds, which are many objects in one box, are not.
    """
    single = ~truth.ignore if truth.difficult is None else ~truth.ignore | truth.difficult
    boxes = truth.boxes.double()
    largest = boxes.new_zeros(len(boxes))
    # crowds lie in an image of their own
    for part, row, other in candidates(
        truth.image, torch.where(single, truth.image, len(truth.ids)), len(truth.ids) + 1
    ):
        one = part[row]
        iou = torch.where(one == other, 0.0, paired_iou(boxes[one], boxes[other]))
        largest.scatter_reduce_(0, one, iou, "amax")
    return largest


def _between(values: Tensor, limits: tuple[float, float]) -> Tensor:
    return (values >= limits[0]) & (values <= limits[1])


def _group(name: str, detections: DetectionSet, truth: TruthSet, metric: str, members: Tensor, inside: Tensor) -> Group:
    """members: (G,) bool, the group; inside: (D,) bool, detections that are wrong where they take no object."""
    truth = replace(truth, ignore=truth.ignore | ~members)
    matches = match(detections, truth, metric)
    npos = torch.bincount(truth.labels[~truth.ignore], minlength=len(truth.classes))
    # a duplicate of a member is a false positive, whatever its own area
    counted = matches.counted & (inside[matches.order] | (matches.object < len(truth.labels)))
    labels, tp = matches.labels[counted], matches.tp[counted]
    present = npos > 0
    found = torch.bincount(labels[tp], minlength=len(npos))
    return Group(
        name,
        int(npos.sum()),
        float(average(labels, tp, npos, metric)[present].mean()),
        float((found[present] / npos[present].double()).mean()),
    )


def operating_score(errors: ErrorAnalysis, scores: Tensor) -> float:
    """Return the score from which on detections, all classes together, have the best F1; 0 where none is right."""
    counts = errors.state != IGNORED
    scores, order = scores[counts].double().sort(descending=True, stable=True)
    hits = (errors.state[counts][order] == RIGHT).cumsum(0)
    if not len(hits) or not int(hits[-1]):
        return 0.0
    # 2 TP / (TP + FP + objects)
    f1 = 2 * hits / (torch.arange(1, len(hits) + 1, device=hits.device) + errors.npos.sum()).double()
    # only where the score changes can a threshold lie
    ends = torch.cat((scores[1:] != scores[:-1], torch.ones_like(scores[:1], dtype=torch.bool)))
    return float(scores[torch.where(ends, f1, -1.0).argmax()])


def confusion_matrix(detections: DetectionSet, truth: TruthSet, score: float) -> Tensor:
    """Return (C + 1, C + 1) int64: rows are the classes of objects, then "no object"; columns those found, then "none".

    Of the detections of at least this score each is compared with the object of any class that it overlaps most; where
    their IoU is at least .5, the best-scored detection of an object is what the object was taken for. All other
    detections, duplicates among them, are in the last row, objects without any in the last column. What is ignored, or
    compared with such an object, is nowhere.
    """
    labels, _ = join(detections, truth)
    keep = detections.scores >= score
    parts = {name: getattr(detections, name)[keep] for name in ("boxes", "scores", "labels", "image")}
    matches = voc_matches(classless(replace(detections, **parts)), classless(truth))
    classes = len(truth.classes)
    column = labels[keep][matches.order]
    row = torch.where(matches.tp, torch.cat((truth.labels, truth.labels.new_zeros(1)))[matches.object], classes)
    not_found = ~truth.ignore
    not_found[matches.object[matches.tp]] = False
    lost = truth.labels[not_found]
    cells = torch.cat(((row * (classes + 1) + column)[matches.counted], lost * (classes + 1) + classes))
    return torch.bincount(cells, minlength=(classes + 1) ** 2).view(classes + 1, classes + 1)


def calibrate(scores: Tensor, right: Tensor) -> Calibration | None:
    """Compare scores (N,) with whether they were right (N,) bool; None where scores are no probabilities.

    The expected calibration error is the mean difference of score and precision over bins, weighted by their
    detections (Guo et al., ICML 2017, equation 3), "accuracy" there being precision here.
    """
    if len(scores) and (float(scores.min()) < 0 or float(scores.max()) > 1):
        return None
    scores = scores.double()
    bin_index = (scores * BINS).long().clamp(max=BINS - 1)
    count = torch.bincount(bin_index, minlength=BINS)
    score = torch.bincount(bin_index, scores, BINS) / count
    precision = torch.bincount(bin_index, right.double(), BINS) / count
    gap = ((score - precision).abs() * count).nansum() / count.sum()
    return Calibration(count, score, precision, float(gap))


def histogram(values: Tensor, bins: int = 20) -> Tensor:
    """Return (bins,) int64 counts of values within [0, 1]; the last bin includes 1."""
    return torch.bincount((values.double() * bins).long().clamp(0, bins - 1), minlength=bins)
