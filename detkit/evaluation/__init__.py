"""Average precision by VOC's and COCO's rules, recall of proposals, and the files that detections are kept in.

Knows data sets and detections, but no models.
"""

from detkit.evaluation.coco import COCOResult, coco_ap
from detkit.evaluation.coco_results import COCOResults, name_coco_results, parse_coco_results
from detkit.evaluation.comp4 import read_comp4, write_comp4
from detkit.evaluation.operating import best_scores
from detkit.evaluation.pycoco import pycocotools_summary
from detkit.evaluation.recall import ProposalRecall, proposal_recall
from detkit.evaluation.score import Result, score
from detkit.evaluation.store import parse_detections, read_detections, read_results, write_detections
from detkit.evaluation.table import per_class_table, reference_table
from detkit.evaluation.voc import METRICS, VOCResult, voc_ap

__all__ = [
    "METRICS",
    "COCOResult",
    "COCOResults",
    "ProposalRecall",
    "Result",
    "VOCResult",
    "best_scores",
    "coco_ap",
    "name_coco_results",
    "parse_coco_results",
    "parse_detections",
    "per_class_table",
    "proposal_recall",
    "pycocotools_summary",
    "read_comp4",
    "read_detections",
    "read_results",
    "reference_table",
    "score",
    "voc_ap",
    "write_comp4",
    "write_detections",
]
