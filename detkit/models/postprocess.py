"""From predictions to detections: the only one, for every detector."""

import torch
from torch import Tensor

from detkit.config import DetectConfig
from detkit.ops import nms_dense, soft_nms_dense
from detkit.ops.boxes import clip
from detkit.structures import Detections, Images, Predictions


def postprocess(
    predictions: Predictions, images: Images, settings: DetectConfig, least: Tensor | None = None
) -> Detections:
    """Clip, threshold, best top_k a class, NMS per class, best `keep` an image, rescale to the image.

    predictions are in pixels of the network's input, the detections returned in pixels of the original images.
    least: (C,) a threshold for each class in place of `settings.score_threshold`; inf leaves a class out.
    """
    boxes, scores = clip(predictions.boxes.float(), images.sizes), predictions.scores.float()
    limits = {
        "top_k": settings.top_k,
        "max_out": settings.detections_per_image,
        "score": settings.score_threshold if least is None else least,
    }
    if settings.nms == "hard":
        index, labels = nms_dense(boxes, scores, iou=settings.nms_iou, **limits)
        values = None
    else:
        index, labels, values = soft_nms_dense(
            boxes, scores, method=settings.nms, iou=settings.nms_iou, sigma=settings.sigma, **limits
        )
    real = labels >= 0
    index, column = index.clamp(min=0), labels.clamp(min=0)
    batch = torch.arange(len(index), device=index.device).unsqueeze(1)
    picked = boxes[batch, index] if boxes.ndim == 3 else boxes[batch, index, column]
    scale = (images.original / images.sizes).flip(-1).repeat(1, 2).unsqueeze(1)
    values = scores[batch, index, column] * real if values is None else values
    return Detections(picked * scale * real.unsqueeze(-1), values, labels)
