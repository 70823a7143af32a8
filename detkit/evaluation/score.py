"""A metric by its name."""

from detkit.evaluation.coco import COCOResult, coco_ap
from detkit.evaluation.voc import VOCResult, voc_ap
from detkit.structures import DetectionSet, TruthSet

Result = VOCResult | COCOResult


def score(detections: DetectionSet, truth: TruthSet, metric: str) -> Result:
    """Score by `metric`: voc07, voc (see `voc_ap`, IoU .5) or coco (see `coco_ap`)."""
    return coco_ap(detections, truth) if metric == "coco" else voc_ap(detections, truth, metric=metric)
