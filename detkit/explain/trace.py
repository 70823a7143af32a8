"""What each stage of a detector did with one image, as data: see `explain`; detkit/explain/stages.py draws it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detkit.config import Config, DetectConfig
from detkit.data.image_truth import Truth
from detkit.data.transforms import build_test, pad
from detkit.explain.recording import Keep, record
from detkit.inference.predict import proposal_method
from detkit.models import postprocess
from detkit.models.fast_rcnn import FastRCNN
from detkit.models.faster_rcnn import FasterRCNN
from detkit.models.rcnn import RCNN
from detkit.models.region import RegionDetector, proposals_of, sample_regions
from detkit.models.rpn import rpn_candidates
from detkit.models.sppnet import SPPNet
from detkit.models.ssd import SSD
from detkit.models.svm_detector import SVMDetector
from detkit.models.yolov1 import YOLOv1
from detkit.ops import clip, decode_cells, hard_negatives, nms_suppressors, responsible_boxes, sppnet_scale
from detkit.runtime.device import autocast, images_to_device
from detkit.structures import Images, Predictions, Proposals, Targets

if TYPE_CHECKING:
    from detkit.models import Detector

SHOWN = 12  # regions whose pooled features are kept


@dataclass(frozen=True)
class Suppression:
    """What NMS did with M candidates, best first.

    boxes: (M, 4); scores: (M,); labels: (M,), all 0 where there are no classes; source: (M,) the row of what they came
    from (a default box, a region, a box of a cell, an anchor). by: (M,) which candidate removed each, its own number
    where it stays, -1 where it was not looked at. final: (F,) those that stay in the end. iou: the threshold.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    source: np.ndarray
    by: np.ndarray
    final: np.ndarray
    iou: float

    def removed(self, winner: int) -> np.ndarray:
        """Numbers of the candidates that `winner` removed."""
        rows = np.flatnonzero(self.by == winner)
        return rows[rows != winner]


@dataclass(frozen=True)
class Assignment:
    """What training would make of boxes (K, 4): owner (K,), the object of each, or -1 for background."""

    boxes: np.ndarray
    owner: np.ndarray


@dataclass(frozen=True)
class SSDTrace:
    """anchors: (A, 4) default boxes; level: (A,) the map of each; sides: cells a side of each map.

    learnt: the positives and the hard negatives, with the map of each in `learnt_level`.
    """

    anchors: np.ndarray
    level: np.ndarray
    sides: list[int]
    learnt: Assignment | None
    learnt_level: np.ndarray


@dataclass(frozen=True)
class YOLOTrace:
    """grid: S. boxes: (S * S, K, 4); confidence: (S * S, K); classes: (S * S, C). owner: (S * S,) the object of each
    cell, or negative; responsible: (S * S, K) bool; iou: (S * S, K) of each box with its cell's object.
    """

    grid: int
    boxes: np.ndarray
    confidence: np.ndarray
    classes: np.ndarray
    owner: np.ndarray | None
    responsible: np.ndarray | None
    iou: np.ndarray | None


@dataclass(frozen=True)
class RPNTrace:
    """The region proposal network. anchors, objectness: of each map (A, 4) and (A,), a probability; shapes: (rows,
    columns) of each map; cells: (width, height) of one. work: NMS of the candidates; learnt: anchors drawn.
    """

    anchors: list[np.ndarray]
    objectness: list[np.ndarray]
    shapes: list[tuple[int, int]]
    cells: list[tuple[float, float]]
    work: Suppression
    learnt: Assignment | None


@dataclass(frozen=True)
class RegionTrace:
    """regions: (R, 4), best first. shown: (P,) the regions whose features are kept: those of final boxes come first.

    pooled: for each level of pooling (P, n, n), the mean over the channels. crops: (P, side, side, 3) uint8, what an
    R-CNN saw. scale: (P,) short side of the pyramid's level that it was pooled at. learnt: regions drawn for training.
    """

    regions: np.ndarray
    shown: np.ndarray
    pooled: list[np.ndarray]
    crops: np.ndarray | None
    scale: np.ndarray | None
    rpn: RPNTrace | None
    learnt: Assignment | None


Trace = SSDTrace | YOLOTrace | RegionTrace


@dataclass(frozen=True)
class Explanation:
    """One image, (H, W, 3) uint8 RGB; all boxes are in its pixels. model: the detector's name in configs.

    boxes: (F, 4), scores and labels (F,) of the detections, as `detector.detect` finds them. trace: None for detectors
    of which only the suppression is known.
    """

    image: np.ndarray
    model: str
    classes: tuple[str, ...]
    settings: DetectConfig
    truth: Truth | None
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    work: Suppression
    trace: Trace | None


def explain(detector: "Detector", image: np.ndarray, config: Config, truth: Truth | None = None) -> Explanation:
    """Detect on one image, (H, W, 3) uint8 RGB, and return what every stage did.

    config: that of the checkpoint; `config.detect` has the score threshold and NMS. truth: the image's objects; with it
    comes what training would learn from this image, by the detector's own matching, the weights as they are.
    """
    device = next(detector.parameters()).device
    images = images_to_device(_images(detector, image, config), device, config.train.channels_last)
    targets = None if truth is None else _targets(detector, image, truth, config).to(device)
    training = detector.training
    detector.eval()
    tracer = _tracer(detector)
    with torch.inference_mode():
        with autocast(device, config.train.amp), record(detector, tracer.parts) as seen:
            predictions = detector.predict(images)
        found = postprocess(predictions, images, config.detect)
        work = _suppression(predictions, images, config.detect)
        trace = tracer.trace(detector, images, targets, seen, work, predictions)
    detector.train(training)
    boxes, scores, labels = (part.cpu().numpy() for part in found.image(0))
    name = config.model.name
    return Explanation(image, name, detector.classes, config.detect, truth, boxes, scores, labels, work, trace)


def _images(detector: "Detector", image: np.ndarray, config: Config) -> Images:
    """The image as the network's input, with proposals for a detector that wants such."""
    regions = proposal_method(config)(image) if detector.takes_proposals else np.zeros((0, 4), np.float32)
    pixels, regions, _ = build_test(detector.input)(image, regions, objects=0)
    given = Proposals.pad([torch.from_numpy(regions)]) if detector.takes_proposals else None
    return Images(*pad([pixels]), torch.tensor([image.shape[:2]]), ("0",), given)


def _targets(detector: "Detector", image: np.ndarray, truth: Truth, config: Config) -> Targets:
    """The objects as training sees them, in pixels of the input."""
    _, boxes, rows = build_test(detector.input)(image, truth.boxes)
    ignore = truth.crowd if config.data.difficult else truth.crowd | truth.difficult
    parts = (torch.from_numpy(np.asarray(part)[rows]) for part in (truth.labels, ignore))
    # all objects keep their number, so that an owner is one of `truth`
    whole = torch.zeros(len(truth.labels), 4)
    whole[rows] = torch.from_numpy(boxes)
    labels, skip = torch.full((len(truth.labels),), -1), torch.zeros(len(truth.labels), dtype=torch.bool)
    labels[rows], skip[rows] = parts
    return Targets.pad([(whole, labels, skip)])


def _factor(images: Images) -> Tensor:
    """(4,) from pixels of the input to pixels of the image."""
    return (images.original / images.sizes).flip(-1).repeat(1, 2)[0]


def _in_image(boxes: Tensor, images: Images) -> np.ndarray:
    return (boxes.float() * _factor(images)).cpu().numpy()


def _suppression(predictions: Predictions, images: Images, settings: DetectConfig) -> Suppression:
    """What post-processing drops, from what it is given."""
    boxes, scores = clip(predictions.boxes.float(), images.sizes)[0], predictions.scores[0].float()
    # host sync: of one image that a person looks at, candidates alone are worth keeping
    source, labels = (scores > settings.score_threshold).nonzero(as_tuple=True)
    chosen = boxes[source] if boxes.ndim == 2 else boxes[source, labels]
    return _work(
        chosen,
        scores[source, labels],
        labels,
        source,
        images,
        settings.nms_iou,
        settings.top_k,
        settings.detections_per_image,
    )


def _work(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    source: Tensor,
    images: Images,
    iou: float,
    top_k: int,
    most: int,
) -> Suppression:
    """NMS of one image's boxes (M, 4), at most `most` of which stay."""
    by = nms_suppressors(boxes[None], scores[None], labels[None], iou=iou, top_k=top_k)[0]
    order = scores.argsort(descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    by = torch.where(by >= 0, place[by.clamp(min=0)], -1)[order].cpu().numpy()
    final = np.flatnonzero(by == np.arange(len(by)))[:most]
    scores, labels, source = (part[order] for part in (scores, labels, source))
    parts = scores.cpu().numpy(), labels.cpu().numpy(), source.cpu().numpy()
    return Suppression(_in_image(boxes[order], images), *parts, by, final, iou)


class _Tracer:
    """Which calls of a detector to note, and what to make of them."""

    parts: Mapping[str, Keep]

    def __init__(self) -> None:
        self.parts = {}

    def trace(
        self,
        detector: Any,
        images: Images,
        targets: Targets | None,
        seen: dict[str, list[Any]],
        work: Suppression,
        predictions: Predictions,
    ) -> Trace | None:
        return None


class _SSD(_Tracer):
    def __init__(self) -> None:
        self.parts = {"maps": lambda maps, *_: [x.shape[-1] for x in maps], "network": lambda outputs, *_: outputs}

    def trace(self, detector: SSD, images, targets, seen, work, predictions) -> SSDTrace:
        sides, ((logits, _),) = seen["maps"][0], seen["network"]
        counts = [side**2 * layer.out_channels // 4 for side, layer in zip(sides, detector.regressors)]  # pyright: ignore
        level = np.repeat(np.arange(len(sides)), counts)
        anchors = _in_image(detector.anchors, images)
        if targets is None:
            return SSDTrace(anchors, level, sides, None, np.zeros(0, np.int64))
        match = detector.match(targets)
        _, negative = hard_negatives(logits, match, targets.labels, detector.neg_pos_ratio)
        rows = ((match.index[0] >= 0) | negative[0]).nonzero().squeeze(1)
        learnt = _assignment(detector.anchors[rows], match.index[0][rows], images)
        return SSDTrace(anchors, level, sides, learnt, level[rows.cpu().numpy()])


class _YOLO(_Tracer):
    def __init__(self) -> None:
        self.parts = {"network": lambda cells, *_: cells}

    def trace(self, detector: YOLOv1, images, targets, seen, work, predictions) -> YOLOTrace:
        (cells,) = seen["network"]
        boxes = _in_image(decode_cells(cells.boxes[0], detector.input.size), images)
        confidence, classes = (part[0].float().clamp(min=0).cpu().numpy() for part in (cells.confidence, cells.classes))
        owner = own = iou = None
        if targets is not None:
            index = detector.assign(targets)
            own, iou = responsible_boxes(cells, index, targets.boxes, detector.input.size)
            owner, own, iou = (part[0].cpu().numpy() for part in (index, own, iou))
        return YOLOTrace(detector.grid, boxes, confidence, classes, owner, own, iou)


def _mean(pooled: Tensor, *_: Any) -> Tensor:
    """Features of regions (R, C, ...) -> (R, ...): all of a region's channels would be too many to keep and to see."""
    return pooled.float().mean(1)


class _Region(_Tracer):
    """Fast R-CNN, and what all region detectors have."""

    def __init__(self, detector: RegionDetector) -> None:
        self.parts = {"region_features": _mean}
        if isinstance(detector, SVMDetector):
            self.parts = {"pool": _mean}
        elif isinstance(detector, FastRCNN) and detector.config.scales:
            self.parts = {"pyramid_features": _mean}
        elif isinstance(detector, FasterRCNN):
            self.parts = {
                "region_features": _mean,
                "maps": lambda maps, *_: [tuple(x.shape[-2:]) for x in maps],
                "proposals": lambda given, images, *parts: (given, parts),
            }

    def trace(self, detector: Any, images, targets, seen, work, predictions) -> RegionTrace:
        (pooled,) = (seen[name] for name in self.parts if name in ("pool", "region_features", "pyramid_features"))
        pooled = torch.cat(pooled)
        if isinstance(detector, FasterRCNN):
            ((given, outputs),) = seen["proposals"]
            rpn = _rpn(detector, images, targets, seen["maps"][0], *outputs)
        else:
            given, rpn = proposals_of(images), None
        shown = _shown(work, predictions, given)
        rows = torch.from_numpy(shown).to(pooled.device)
        boxes = given.boxes[:, rows]
        crops = scale = learnt = None
        if isinstance(detector, RCNN):
            crops = detector.crops(images, boxes)[0].permute(0, 2, 3, 1).round().clamp(0, 255).byte().cpu().numpy()
        scales = None if isinstance(detector, (FasterRCNN, RCNN)) else detector.config.scales
        if scales:
            level = sppnet_scale(boxes, images.sizes, scales)[0].cpu().numpy()
            scale = np.asarray(scales)[level]
        if targets is not None:
            regions, there = given.boxes, given.valid
            drawn = sample_regions(regions, there, targets, len(detector.classes), detector.config)
            learnt = _assignment(drawn.boxes[0][drawn.valid[0]], drawn.owner[0][drawn.valid[0]], images)
        regions = _in_image(given.boxes[0][given.valid[0]], images)
        return RegionTrace(regions, shown, _levels(detector, pooled[rows]), crops, scale, rpn, learnt)


def _shown(work: Suppression, predictions: Predictions, given: Proposals) -> np.ndarray:
    """The regions of the final boxes, then others of high score, which are not those of a removed box."""
    best = predictions.scores[0].amax(1).masked_fill(~given.valid[0], -torch.inf)
    order = best.argsort(descending=True, stable=True).cpu().numpy()[: int(given.valid[0].sum())]
    own = list(dict.fromkeys(work.source[work.final].tolist()))
    rest = order[~np.isin(order, work.source)]
    return np.array((own + rest.tolist())[:SHOWN], np.int64)


def _levels(detector: Any, pooled: Tensor) -> list[np.ndarray]:
    """Pooled features (P, ...) as squares, one for each level of SPPNet's pyramid."""
    values = pooled.cpu().numpy()
    if not isinstance(detector, SPPNet):
        return [values]
    sides = detector.config.pyramid
    ends = np.cumsum([side**2 for side in sides])
    return [part.reshape(-1, side, side) for part, side in zip(np.split(values, ends[:-1], 1), sides)]


def _assignment(boxes: Tensor, owner: Tensor, images: Images) -> Assignment:
    """Boxes (K, 4) in pixels of the input, and the object of each (K,), negative for background."""
    return Assignment(_in_image(boxes, images), owner.clamp(min=-1).cpu().numpy())


def _rpn(
    detector: FasterRCNN,
    images: Images,
    targets: Targets | None,
    shapes: list[tuple[int, int]],
    logits: list[Tensor],
    deltas: list[Tensor],
    anchors: list[Tensor],
) -> RPNTrace:
    before, after = detector.counts
    found = rpn_candidates(logits, deltas, anchors, images.sizes, detector.min_size(images), before)
    boxes, score, level = (part[found.valid] for part in found[:3])
    work = _work(boxes, score, level, level, images, detector.config.rpn_nms_iou, before, after)
    # logits until here: probabilities of 1 would tie
    work = replace(work, scores=torch.from_numpy(work.scores).sigmoid().numpy())
    learnt = None
    if targets is not None:
        every = torch.cat(anchors)
        match = detector.match(images, targets, every)
        index, drawn = detector.draw(match)
        rows = index[0][drawn[0]]
        learnt = _assignment(every[rows], match.index[0][rows], images)
    across, down = _factor(images)[:2].tolist()
    cells = [(stride * across, stride * down) for stride in detector.strides]
    heat = [part[0].float().sigmoid().cpu().numpy() for part in logits]
    return RPNTrace([_in_image(part, images) for part in anchors], heat, shapes, cells, work, learnt)


def _tracer(detector: "Detector") -> _Tracer:
    if isinstance(detector, SSD):
        return _SSD()
    if isinstance(detector, YOLOv1):
        return _YOLO()
    return _Region(detector) if isinstance(detector, RegionDetector) else _Tracer()
