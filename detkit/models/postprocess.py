"""From predictions to detections: the only one, for every detector."""

import torch

from detkit.config import DetectConfig
from detkit.ops import nms_dense
from detkit.structures import Detections, Images, Predictions


def postprocess(predictions: Predictions, images: Images, settings: DetectConfig) -> Detections:
    """Threshold, best top_k a class, NMS per class, best `keep` an image, rescale to the photo, clip.

    predictions are in pixels of the network's input, the detections returned in pixels of the original photos.
    """
    boxes, scores = predictions.boxes.float(), predictions.scores.float()
    index, labels = nms_dense(
        boxes, scores, iou=settings.iou, top_k=settings.top_k, max_out=settings.keep, score=settings.score
    )
    real = labels >= 0
    index, column = index.clamp(min=0), labels.clamp(min=0)
    batch = torch.arange(len(index), device=index.device).unsqueeze(1)
    picked = boxes[batch, index] if boxes.ndim == 3 else boxes[batch, index, column]
    scale = (images.original / images.sizes).flip(-1).repeat(1, 2).unsqueeze(1)
    limit = images.original.flip(-1).repeat(1, 2).unsqueeze(1)
    picked = (picked * scale).clamp(min=0).minimum(limit.to(picked.dtype))
    picked = picked * real.unsqueeze(-1)
    return Detections(picked, scores[batch, index, column] * real, labels)
