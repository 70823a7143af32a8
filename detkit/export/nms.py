"""NMS inside an exported network, by ONNX's NonMaxSuppression; the same as `postprocess` up to the input's pixels."""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from detkit.config import DetectConfig
from detkit.errors import UserError
from detkit.models import Detector
from detkit.models.parts import ExportPart, Function
from detkit.ops import clip, gather_boxes, nms

SETTINGS = ("score_threshold", "top_k", "nms_iou", "detections_per_image")


def with_nms(detector: Detector, parts: dict[str, ExportPart], settings: DetectConfig) -> dict[str, ExportPart]:
    """Return the one part of a dense detector with NMS behind it: its outputs are boxes, scores and labels.

    UserError for a detector that is several parts, or settings that the operator does not have.
    """
    (end, part), *others = parts.items()
    if others or list(part.outputs) != ["boxes", "scores"]:
        raise UserError(f"--nms: what {detector.config.name} exports ends before its boxes; dense detectors have NMS")
    if detector.input.resize not in ("stretch", "letterbox"):
        raise UserError(
            f"--nms: {detector.config.name} takes images of any size; those of one size can have NMS inside"
        )
    if settings.nms != "hard" or settings.flip or settings.scales != [1.0]:
        raise UserError("--nms: a file has hard NMS of one view: detect.nms=hard detect.flip=false detect.scales=[1.0]")
    values = {key: value for key, value in asdict(settings).items() if key in SETTINGS}
    predict, size = part.network, torch.tensor(detector.input.size)

    def suppressed(pixels: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores = predict(pixels) if sizes is None else predict(pixels, sizes)
        top_k = min(settings.top_k, scores.shape[1])
        best, index = scores.transpose(1, 2).topk(top_k)  # (B, C, top_k)
        rows = gather_boxes(clip(boxes, size if sizes is None else sizes), index.flatten(1))
        groups = rows.view(-1, top_k, 4)
        kept = greedy_nms(groups, best.flatten(0, 1), settings.nms_iou, settings.score_threshold).view_as(best)
        ranked = best.masked_fill(~kept, -torch.inf).flatten(1)
        found, order = ranked.topk(min(settings.detections_per_image, ranked.shape[1]))
        valid = found > -torch.inf
        labels = (order // top_k).masked_fill(~valid, -1)
        return gather_boxes(rows, order) * valid.unsqueeze(-1), found.masked_fill(~valid, 0), labels

    outputs = {
        "boxes": "(batch, detections, 4) float32, x1, y1, x2, y2 in pixels of the input, best first, 0 for padding",
        "scores": "(batch, detections) float32, 0 for padding",
        "labels": "(batch, detections) int64, index into classes, -1 for padding",
    }
    facts, run = part.facts | {"nms": values}, part.run | {"nms": values}
    return {end: replace(part, network=Function(predict, suppressed), outputs=outputs, facts=facts, run=run)}


@torch.library.custom_op("detkit::greedy_nms", mutates_args=())
def greedy_nms(boxes: Tensor, scores: Tensor, iou: float, score: float) -> Tensor:
    """Boxes (G, K, 4) and scores (G, K), best first -> which stay, (G, K) bool; see `ops.nms`."""
    count = scores.shape[1]
    index = nms(boxes, scores, iou=iou, top_k=count, max_out=count, score=score)
    stays = torch.zeros(len(scores), count + 1, dtype=torch.bool)
    return stays.scatter_(1, index.where(index >= 0, count), True)[:, :-1].clone()


@greedy_nms.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, score: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def translations() -> dict[Any, Any]:
    """Return how torch's exporter writes `greedy_nms`: each group is one image of one class."""
    from onnxscript import opset18  # pyright: ignore[reportMissingImports]

    op: Any = opset18  # whose types are of tensors, where these are tensors' names

    def translate(boxes: Any, scores: Any, iou: float, score: float) -> Any:
        limits = (op.Constant(value_floats=[value]) for value in (iou, score))
        one_class = op.Unsqueeze(scores, op.Constant(value_ints=[1]))
        chosen = op.NonMaxSuppression(boxes, one_class, op.Shape(scores, start=1, end=2), *limits)
        place = op.Gather(chosen, op.Constant(value_ints=[0, 2]), axis=1)  # group and box, without the class
        ones = op.Expand(op.Constant(value_floats=[1.0]), op.Shape(chosen, start=0, end=1))
        stays = op.ScatterND(op.ConstantOfShape(op.Shape(scores)), place, ones)
        return op.Greater(stays, op.Constant(value_floats=[0.0]))

    return {torch.ops.detkit.greedy_nms.default: translate}
