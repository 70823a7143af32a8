"""Average precision, and the files that detections are kept in. Knows data sets and detections, but no models."""

from detkit.evaluation.voc import METRICS, VOCResult, voc_ap

__all__ = ["METRICS", "VOCResult", "voc_ap"]
