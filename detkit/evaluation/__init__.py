"""Average precision, and the files that detections are kept in. Knows data sets and detections, but no models."""

from detkit.evaluation.comp4 import read_comp4, write_comp4
from detkit.evaluation.store import read_detections, write_detections
from detkit.evaluation.table import per_class_table
from detkit.evaluation.voc import METRICS, VOCResult, voc_ap

__all__ = [
    "METRICS",
    "VOCResult",
    "per_class_table",
    "read_comp4",
    "read_detections",
    "voc_ap",
    "write_comp4",
    "write_detections",
]
