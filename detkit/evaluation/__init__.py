"""Average precision, recall of proposals, and the files that detections are kept in.

Knows data sets and detections, but no models.
"""

from detkit.evaluation.comp4 import read_comp4, write_comp4
from detkit.evaluation.recall import ProposalRecall, proposal_recall
from detkit.evaluation.store import read_detections, write_detections
from detkit.evaluation.table import per_class_table
from detkit.evaluation.voc import METRICS, VOCResult, voc_ap

__all__ = [
    "METRICS",
    "ProposalRecall",
    "VOCResult",
    "per_class_table",
    "proposal_recall",
    "read_comp4",
    "read_detections",
    "voc_ap",
    "write_comp4",
    "write_detections",
]
