"""VOCevaldet.m, VOC07's xVOCap and VOC2010's VOCap once more, as slow plain loops in float64 and 1-based pixels."""

import math

import numpy as np

from detkit.structures import DetectionSet, TruthSet


def voc_ap_loops(detections: DetectionSet, truth: TruthSet, iou: float = 0.5, metric: str = "voc07") -> list[float]:
    """AP of every class of `truth`; NaN for a class without objects to find."""
    return [_class_ap(detections, truth, name, iou, metric) for name in truth.classes]


def _class_ap(detections: DetectionSet, truth: TruthSet, name: str, minoverlap: float, metric: str) -> float:
    objects: dict[str, list[dict]] = {image: [] for image in truth.ids}
    npos = 0
    for box, label, ignore, image in zip(*(x.tolist() for x in (truth.boxes, truth.labels, truth.ignore, truth.image))):
        if truth.classes[label] == name:
            objects[truth.ids[image]].append({"bb": _inclusive(box), "diff": ignore, "det": False})
            npos += not ignore
    rows = zip(*(x.tolist() for x in (detections.scores, detections.boxes, detections.labels, detections.image)))
    found = [
        (score, _inclusive(box), detections.ids[image])
        for score, box, label, image in rows
        if detections.classes[label] == name
    ]
    found.sort(key=lambda row: -row[0])  # stable, as MATLAB's sort
    tp, fp = [], []
    for _, bb, image in found:
        ovmax, jmax = -math.inf, None
        for candidate in objects[image]:
            bbgt = candidate["bb"]
            bi = [max(bb[0], bbgt[0]), max(bb[1], bbgt[1]), min(bb[2], bbgt[2]), min(bb[3], bbgt[3])]
            iw, ih = bi[2] - bi[0] + 1, bi[3] - bi[1] + 1
            if iw > 0 and ih > 0:
                ua = _size(bb) + _size(bbgt) - iw * ih
                ov = iw * ih / ua
                if ov > ovmax:
                    ovmax, jmax = ov, candidate
        tp.append(0)
        fp.append(0)
        if jmax is not None and ovmax >= minoverlap:
            if not jmax["diff"]:
                if not jmax["det"]:
                    tp[-1] = 1
                    jmax["det"] = True
                else:
                    fp[-1] = 1
        else:
            fp[-1] = 1
    if npos == 0:
        return math.nan
    ctp, cfp = np.cumsum(tp, dtype=float), np.cumsum(fp, dtype=float)
    recall = ctp / npos
    precision = np.array([t / (t + f) if t + f else 0.0 for t, f in zip(ctp, cfp)])
    return _points(recall, precision) if metric == "voc07" else area(recall, precision)


def _inclusive(box: list[float]) -> list[float]:
    return [box[0] + 1, box[1] + 1, box[2], box[3]]


def _size(bb: list[float]) -> float:
    return (bb[2] - bb[0] + 1) * (bb[3] - bb[1] + 1)


def _points(recall: np.ndarray, precision: np.ndarray) -> float:
    ap = 0.0
    for level in np.arange(0.0, 1.1, 0.1):
        reached = precision[recall >= level]
        ap += (reached.max() if len(reached) else 0.0) / 11
    return ap


def area(recall: np.ndarray, precision: np.ndarray) -> float:
    mrec = np.concatenate([[0.0], recall, [1.0]])
    mpre = np.concatenate([[0.0], precision, [0.0]])
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)) if mrec[i] != mrec[i - 1])
