"""What the steps of a detector did with one image, as data: `Detector.trace` returns it, `detkit.explain` draws it.

All boxes are xyxy in pixels of the network's input. A detector puts together the steps that it has; a step of a new
kind needs a drawing of its own, see `detkit/explain/drawing.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from detkit.structures import Predictions


class MapShape(NamedTuple):
    """A feature map: its cells down and across, the pixels of the input that one cell stands for, and where it begins
    in the input, outside of it where images are laid on a larger canvas."""

    rows: int
    columns: int
    cell_height: float
    cell_width: float
    top: float = 0.0
    left: float = 0.0


class Step:
    """One step of a detector. refines: whether it comes after NMS, as `Detector.refine` does."""

    refines: ClassVar[bool] = False


@dataclass(frozen=True)
class Trace:
    """predictions: of the image, before NMS. steps: in the order in which the detector goes through them."""

    predictions: Predictions
    steps: list[Step]


@dataclass(frozen=True)
class AnchorStep(Step):
    """Boxes that are laid over the image.

    boxes: (A, 4) of each map, cell by cell. noun: what the paper calls them. note: what else there is to say of them,
    for people.
    """

    boxes: list[Tensor]
    maps: list[MapShape]
    noun: str
    note: str


@dataclass(frozen=True)
class SampleStep(Step):
    """What training would learn from the image.

    boxes: (K, 4); matched_gt_index: (K,) the object of each, negative for background; level: (K,) the map of each, None
    where there is one. name, title, text: of the step, for people; text may hold {samples}, {positive}, {negative} and,
    with levels, {levels}. captions: what the boxes of objects, and those of background, are called. legend: what their
    colours stand for; the class follows the first.
    """

    boxes: Tensor
    matched_gt_index: Tensor
    name: str
    title: str
    text: str
    legend: tuple[str, str]
    captions: tuple[str, str] = ("of objects", "of background")
    level: Tensor | None = None


@dataclass(frozen=True)
class AnchorChoiceStep(Step):
    """Which anchors, and so which maps, answer for the image's objects in training.

    anchors: (K, 2) width and height; on_map: (M, K) bool, which of them each map has. sides: (N, 2) width and height of
    the objects. place: (M, N) where each one's anchor is in `boxes`, (A, 4), the anchors of all maps; -1 for none.
    left_out: (A,) bool, which boxes without an object overlap one by more than `ignore_iou`, as they are predicted.
    """

    anchors: Tensor
    on_map: Tensor
    sides: Tensor
    place: Tensor
    boxes: Tensor
    left_out: Tensor
    ignore_iou: float
    maps: list[MapShape]


@dataclass(frozen=True)
class MapStep(Step):
    """Which map each prediction came from. level: (A,) of each row of the predictions."""

    level: Tensor
    maps: list[MapShape]


@dataclass(frozen=True)
class FocalStep(Step):
    """How much the focal loss heeds each anchor in training.

    entropy, focal: (A,) the loss of each anchor, of all its classes, with gamma 0 and with `gamma`; 0 where the anchor
    is left out. positive: (A,) bool, whether it has an object. level: (A,) the map of each, cell by cell.
    """

    entropy: Tensor
    focal: Tensor
    positive: Tensor
    level: Tensor
    maps: list[MapShape]
    gamma: float


@dataclass(frozen=True)
class GridStep(Step):
    """Predictions of a grid's cells. boxes: (S * S, K, 4); confidence: (S * S, K); classes: (S * S, C)."""

    grid: int
    boxes: Tensor
    confidence: Tensor
    classes: Tensor


@dataclass(frozen=True)
class ResponsibleStep(Step):
    """What training would learn from a grid.

    boxes: as in `GridStep`. matched_gt_index: (S * S,) the object of each cell, or negative. responsible: (S * S, K)
    bool. iou: (S * S, K) of each box with its cell's object.
    """

    grid: int
    boxes: Tensor
    matched_gt_index: Tensor
    responsible: Tensor
    iou: Tensor


@dataclass(frozen=True)
class ObjectnessStep(Step):
    """How likely each anchor holds an object. scores: (A,) of each map, probabilities, cell by cell."""

    scores: list[Tensor]
    maps: list[MapShape]


@dataclass(frozen=True)
class ProposalNMSStep(Step):
    """From candidates to proposals. boxes: (M, 4); logits: (M,); levels: (M,), which NMS keeps apart."""

    boxes: Tensor
    logits: Tensor
    levels: Tensor
    nms_iou: float
    pre_nms_top_n: int
    post_nms_top_n: int


@dataclass(frozen=True)
class ProposalStep(Step):
    """Proposals. boxes: (R, 4). given: whether they came with the image, and are not the detector's own."""

    boxes: Tensor
    given: bool


@dataclass(frozen=True)
class PooledStep(Step):
    """What the head reads of each region.

    regions: (R, 4), of the rows of the predictions. scores: (R,) the best of each, -inf for padding. pooled: of each
    level of pooling (R, n, n), means over channels. scales: (R,) the short side of the image that each was pooled at,
    None where there is one. crop: takes indices of regions (P,) and returns what the network saw of them, (P, 3, side,
    side) from 0 to 255; None where that is the image.
    """

    regions: Tensor
    scores: Tensor
    pooled: list[Tensor]
    scales: Tensor | None
    crop: Callable[[Tensor], Tensor | None]


@dataclass(frozen=True)
class PositionStep(Step):
    """What the parts of a region find in the maps that are for them.

    regions: (R, 4) and scores: (R, C), of the rows of the predictions. cell: pixels of the input between cells of the
    maps. parts: takes a region's index and a class, returns that class's maps (k, k, H, W), row and column of the part
    in front, and what the region pools of them, (k, k).
    """

    regions: Tensor
    scores: Tensor
    cell: float
    parts: Callable[[int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class RegressionStep(Step):
    """Regions (R, 4), of the rows of the predictions, before the head moved them."""

    regions: Tensor


@dataclass(frozen=True)
class MaskTargetStep(Step):
    """What a mask branch would learn of the image.

    regions: (K, 4), the positive ones of those that are sampled; matched_gt_index: (K,) the object of each. masks:
    (K, M, M), of the objects where the regions are, from 0 to 1; None where nobody knows the objects' masks.
    """

    regions: Tensor
    matched_gt_index: Tensor
    masks: Tensor | None


@dataclass(frozen=True)
class MaskStep(Step):
    """The masks of detections.

    scores: (R, C) of the rows of the predictions. of_boxes: takes boxes (P, 4), returns how probable it is that a cell
    of each is the object's, for every class, (P, C, M, M). threshold: from which on it is.
    """

    refines = True
    scores: Tensor
    of_boxes: Callable[[Tensor], Tensor]
    threshold: float
