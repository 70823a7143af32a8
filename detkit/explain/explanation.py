"""What a detector did with one image, as data: its steps, as it tells them, and its non-maximum suppression."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from detkit.config import Config, DetectConfig
from detkit.data.batch import make_batch
from detkit.data.image_truth import Truth
from detkit.data.transforms import build_test
from detkit.inference.fast import run_fast
from detkit.inference.predict import proposal_method
from detkit.models import Detector, postprocess
from detkit.models.trace import Step
from detkit.ops import clip, nms_suppressors, pack_masks, scale
from detkit.rle import decode
from detkit.runtime.device import autocast, images_to_device
from detkit.structures import Images, Predictions, Targets

ENOUGH = 20  # predictions that are shown of an image on which none scores above the threshold


@dataclass(frozen=True)
class Suppression:
    """What NMS did with M candidates, best first.

    boxes: (M, 4), in pixels of the image. scores: (M,). labels: (M,), boxes of different ones were not compared.
    source: (M,) the row of the predictions that each came from. by: (M,) which candidate removed each, its own index
    where it stays, -1 where it was not looked at. kept: (F,) those that stay in the end. iou: the threshold.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    by: np.ndarray
    kept: np.ndarray
    iou: float

    @property
    def stays(self) -> np.ndarray:
        """(M,) bool: which candidates no other one removed."""
        return self.by == np.arange(len(self.by))

    @property
    def removed(self) -> np.ndarray:
        """Indices of the candidates that another one removed."""
        return np.flatnonzero((self.by >= 0) & ~self.stays)

    def removed_by(self, winner: int) -> np.ndarray:
        """Indices of the candidates that `winner` removed."""
        return self.removed[self.by[self.removed] == winner]


@dataclass(frozen=True)
class Explanation:
    """One image, (H, W, 3) uint8 RGB, and what a detector did with it.

    boxes: (F, 4), scores, labels: (F,) of the detections, best first, in pixels of the image; source: (F,) the row of
    the predictions that each came from. nms: how they were chosen. steps: as the detector tells them, in pixels of its
    input; factors: (2,) from these to pixels of the image, down and across. settings: what the detections were chosen
    by; note: how the score threshold in it differs from what was asked for, empty where it does not.
    """

    image: np.ndarray
    classes: tuple[str, ...]
    settings: DetectConfig
    truth: Truth | None
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    nms: Suppression
    steps: list[Step]
    factors: Tensor
    note: str

    def in_image(self, boxes: Tensor) -> np.ndarray:
        """Boxes (..., 4) in pixels of the input -> pixels of the image."""
        return scale(boxes, self.factors).cpu().numpy()


def explain(detector: Detector, image: np.ndarray, config: Config, truth: Truth | None = None) -> Explanation:
    """Detect on one image, (H, W, 3) uint8 RGB, and return what every step did.

    config: that of the checkpoint; `config.detect` has the score threshold and NMS. Where no prediction scores above
    the threshold, a lower one is used, see `Explanation.note`. truth: the image's objects; with it
    comes what training would learn from this image, by the detector's own matching, the weights as they are.
    """
    device = next(detector.parameters()).device
    images = images_to_device(batch_of(detector, image, config), device, config.train.channels_last)
    targets = None if truth is None else _targets(detector, image, truth, config).to(device)
    training = detector.training
    detector.eval()
    with torch.inference_mode(), run_fast(detector, device, config.train.amp):
        with autocast(device, config.train.amp):
            trace = detector.trace(images, targets)
        settings, note = _let_some_through(trace.predictions, config.detect)
        detections, index = postprocess(trace.predictions, images, settings)
        with autocast(device, config.train.amp):
            detections = detector.refine(images, detections, trace.predictions.features)
        factors = images.original[0] / images.sizes[0]
        nms = _class_suppression(trace.predictions, images.sizes[0], settings, factors)
    detector.train(training)
    boxes, scores, labels = (part.cpu().numpy() for part in detections.image(0))
    source, classes = index[0, : len(boxes)].cpu().numpy(), detector.classes
    found = {"boxes": boxes, "scores": scores, "labels": labels, "source": source}
    return Explanation(image, classes, settings, truth, nms=nms, steps=trace.steps, factors=factors, note=note, **found)


def _let_some_through(predictions: Predictions, settings: DetectConfig) -> tuple[DetectConfig, str]:
    """Return settings by which at least ENOUGH predictions are left where there would be none, and what is said."""
    scores = predictions.scores[0].float()
    best = scores[scores.isfinite() & (scores != 0)].sort(descending=True).values[:ENOUGH].tolist()
    if not best or best[0] > settings.score_threshold:
        return settings, ""
    # below the last of them, in three digits
    step = 10.0 ** (math.floor(math.log10(abs(best[-1]))) - 2)
    lower = f"{(math.ceil(best[-1] / step) - 1) * step:.3g}"
    note = (
        f"No box scores above {settings.score_threshold:g}, the best has {best[0]:.3g}: shown are those above {lower}."
    )
    return replace(settings, score_threshold=float(lower)), note


def batch_of(detector: Detector, image: np.ndarray, config: Config) -> Images:
    """Return a batch of the image as the test loader makes it, with proposals for a detector that takes them."""
    regions = proposal_method(config)(image) if detector.takes_proposals else np.zeros((0, 4), np.float32)
    pixels, regions, _ = build_test(detector.input)(image, regions, objects=0)
    return make_batch([pixels], [image.shape[:2]], regions=[regions] if detector.takes_proposals else None)


def _targets(detector: Detector, image: np.ndarray, truth: Truth, config: Config) -> Targets:
    """Return the objects as training sees them, in pixels of the input.

    An object that is too small for training becomes padding: all others keep their index.
    """
    known = truth.masks if detector.takes_masks else None
    masks = None if known is None else decode(known.tolist(), image.shape[:2])
    _, kept_boxes, rows, masks = build_test(detector.input).run(image, truth.boxes, masks)
    count = len(truth.labels)
    boxes, labels = np.zeros((count, 4), np.float32), np.full(count, -1)
    boxes[rows], labels[rows] = kept_boxes, truth.labels[rows]
    ignore = truth.crowd if config.data.difficult else truth.crowd | truth.difficult
    objects = [(torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(ignore & (labels >= 0)))]
    if masks is None:
        return Targets.pad(objects)
    packed = pack_masks(masks)
    of_all = np.zeros((count, *packed.shape[1:]), np.uint8)
    of_all[rows] = packed
    return Targets.pad(objects, [{"masks": torch.from_numpy(of_all)}])


def _class_suppression(predictions: Predictions, size: Tensor, settings: DetectConfig, factors: Tensor) -> Suppression:
    """Return what post-processing drops; size: (2,) of the input."""
    boxes, scores = clip(predictions.boxes[0].float(), size), predictions.scores[0].float()
    # host sync: of one image that a person looks at, candidates alone are worth keeping
    source, labels = (scores > settings.score_threshold).nonzero(as_tuple=True)
    candidates = boxes[source] if boxes.ndim == 2 else boxes[source, labels]
    limits = {"iou": settings.nms_iou, "top_k": settings.top_k, "max_out": settings.detections_per_image}
    return suppress(candidates, scores[source, labels], labels, source, factors, **limits)


def suppress(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    source: Tensor,
    factors: Tensor,
    *,
    iou: float,
    top_k: int,
    max_out: int,
) -> Suppression:
    """Record the NMS of one image's boxes (M, 4), in pixels of the input; scores, labels, source: (M,).

    The best `top_k` of each label are compared, the best `max_out` of all stay. factors: as in `Explanation`.
    """
    by = nms_suppressors(boxes[None], scores[None], labels[None], iou=iou, top_k=top_k)[0]
    order = scores.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    by = torch.where(by >= 0, rank[by.clamp(min=0)], -1)[order].cpu().numpy()
    kept = np.flatnonzero(by == np.arange(len(by)))[:max_out]
    columns = {"boxes": scale(boxes, factors), "scores": scores, "labels": labels, "source": source}
    ordered = {name: column[order].cpu().numpy() for name, column in columns.items()}
    return Suppression(**ordered, by=by, kept=kept, iou=iou)
