"""From predictions to detections: the only one, for every detector."""

import torch

from detkit.config import DetectConfig
from detkit.ops import nms_dense
from detkit.ops.boxes import clip
from detkit.structures import Detections, Images, Predictions


def postprocess(predictions: Predictions, images: Images, settings: DetectConfig) -> Detections:
    """Clip, threshold, best top_k a class, NMS per class, best `keep` an image, rescale to the photo.

    predictions are in pixels of the network's input, the detections returned in pixels of the original photos.
    """
    boxes, scores = clip(predictions.boxes.float(), images.sizes), predictions.scores.float()
    index, labels = nms_dense(
        boxes, scores, iou=settings.iou, top_k=settings.top_k, max_out=settings.keep, score=settings.score
    )
    real = labels >= 0
    index, column = index.clamp(min=0), labels.clamp(min=0)
    batch = torch.arange(len(index), device=index.device).unsqueeze(1)
    picked = boxes[batch, index] if boxes.ndim == 3 else boxes[batch, index, column]
    scale = (images.original / images.sizes).flip(-1).repeat(1, 2).unsqueeze(1)
    return Detections(picked * scale * real.unsqueeze(-1), scores[batch, index, column] * real, labels)
