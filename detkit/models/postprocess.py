"""From predictions to detections: the only one, for every detector."""

import torch
from torch import Tensor

from detkit.config import DetectConfig
from detkit.ops import clip, nms_dense, scale, soft_nms_dense
from detkit.structures import Detections, Images, Predictions


def postprocess(
    predictions: Predictions, images: Images, settings: DetectConfig, score_thresholds: Tensor | None = None
) -> tuple[Detections, Tensor]:
    """Clip, threshold, best top_k a class, NMS per class, best `detections_per_image`, rescale to the original image.

    predictions are in pixels of the network's input, the detections in pixels of the original images.
    score_thresholds: (C,) a threshold for each class in place of `settings.score_threshold`; inf leaves a class out.
    Returns the detections, and index (B, D) int64: the row of the predictions that each came from, -1 for padding.
    """
    boxes, scores = clip(predictions.boxes.float(), images.sizes), predictions.scores.float()
    limits = {
        "top_k": settings.top_k,
        "max_out": settings.detections_per_image,
        "score": settings.score_threshold if score_thresholds is None else score_thresholds,
    }
    if settings.nms == "hard":
        index, labels = nms_dense(boxes, scores, iou=settings.nms_iou, **limits)
        lowered = None
    else:
        index, labels, lowered = soft_nms_dense(
            boxes, scores, method=settings.nms, iou=settings.nms_iou, sigma=settings.sigma, **limits
        )
    valid = labels >= 0
    row, column = index.clamp(min=0), labels.clamp(min=0)
    batch = torch.arange(len(index), device=index.device).unsqueeze(1)
    kept = boxes[batch, row] if boxes.ndim == 3 else boxes[batch, row, column]
    kept_scores = scores[batch, row, column] * valid if lowered is None else lowered
    kept = scale(kept, images.original / images.sizes) * valid.unsqueeze(-1)
    return Detections(kept, kept_scores, labels), index
