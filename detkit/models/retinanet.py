"""RetinaNet: Focal Loss for Dense Object Detection (Lin et al., ICCV 2017), beside the paper from top to bottom.

Where the paper, the authors' program Detectron and torchvision differ, and what detkit does:
- An anchor that overlaps an object most is positive, however little that is, as in the RPN (Detectron, torchvision);
  the paper's section 4 does not say so.
- Losses are divided by the positive anchors of their own image, at least 1 (paper, torchvision), not by those of all
  images on a GPU and 1 for each (Detectron).
- Smooth L1 turns into a line at .11 (Detectron); torchvision has absolute differences (`model.beta: 0`).
- P6 comes from C5 (paper); torchvision's first network has it from P5 (`model.p6`).
- Anchors are Detectron's; torchvision's lie around the upper left corner of their cells (`model.anchors`).
- The score threshold, .05, is that of `detect`, on every level; Detectron has none on the coarsest.
- Difficult objects are not trained on (`data.difficult: false`), nor are anchors that would be theirs.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.backbones import create_backbone
from detkit.config import BackboneConfig, one_of, within
from detkit.errors import UserError
from detkit.models.base import Paper
from detkit.models.dense import DenseConfig, DenseDetector
from detkit.models.fpn import FPN, pad_to
from detkit.models.map_anchors import ANCHORS_OF_CELL, MapAnchors, sides_of
from detkit.models.registry import MODELS
from detkit.models.shape_checks import check_pixels
from detkit.models.trace import AnchorStep, FocalStep, SampleStep, Step
from detkit.ops import IGNORED, BoxCoder, Match, anchor_classes, focal_loss, gather_boxes, match_rpn, retinanet_loss
from detkit.structures import Images, InputSpec, Predictions, Targets

CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))  # of the RPN, from which the assignment comes (section 4)


@dataclass
class RetinaNetConfig(DenseConfig):
    """The defaults are RetinaNet for COCO (sections 4 and 5, and the authors' code)."""

    name: str = "retinanet"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("resnet50"))
    size: list[int] = within("[1, 10000]", [800, 1333])
    """Shortest side and largest longest side of the input, pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the input's channels, RGB, in units of 255."""
    std: tuple[float, float, float] = within("(0, inf)", (0.229, 0.224, 0.225))
    """Of the input's channels, RGB, in units of 255."""
    freeze_stages: int = within("[0, inf)", 2)
    """How many first layer groups of the backbone stay as they are."""
    freeze_norms: bool = True
    """Whether the backbone's batch norms stay as they are."""
    features: list[str] | None = None
    """The backbone's maps that the pyramid reads; null: all of stride 8 and up."""
    channels: int = within("[1, 100000]", 256)
    """Of the pyramid's maps and of the subnets."""
    p6: str = "c5"
    """What the first added map is computed from: `c5`, the backbone's coarsest map, or `p5`, the pyramid's."""
    size_divisor: int = within("[1, 10000]", 128)
    """Batches are padded to sides that are a multiple of this."""
    convs: int = within("[0, 100]", 4)
    """3x3 convolutions of a subnet, in front of its last."""
    anchors: str = "py_faster_rcnn"
    """How anchors are laid out: as Detectron does, which is as `py_faster_rcnn` does, or as `torchvision`."""
    ratios: list[float] = within("(0, inf)", [0.5, 1.0, 2.0])
    """Height / width of the anchors."""
    scales: list[float] = within("(0, inf)", [4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3)])
    """Sizes of the anchors, times the map's stride."""
    fg_iou: float = within("[0, 1]", 0.5)
    """IoU with an object from which an anchor is positive."""
    bg_iou: float = within("[0, 1]", 0.4)
    """IoU below which an anchor is background."""
    alpha: float = within("[0, 1]", 0.25)
    """Weight of positives in the focal loss; that of negatives is 1 - alpha."""
    gamma: float = within("[0, inf)", 2.0)
    """How much less the focal loss heeds what is already well classified; 0: not at all."""
    beta: float = within("[0, inf)", 0.11)
    """Where the smooth L1 of the deltas turns from a square into a line."""
    prior: float = within("(0, 1)", 0.01)
    """Probability of an object that the network begins with, at every anchor, for every class."""
    pre_nms_top_n: int = within("[1, inf)", 1000)
    """Best predictions of each map that are decoded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) != 2 or not self.size[0] <= self.size[1]:
            raise UserError(f"model.size: {self.size} is not [shortest side, largest longest side]")
        one_of("model.p6", self.p6, ("c5", "p5"))
        one_of("model.anchors", self.anchors, tuple(ANCHORS_OF_CELL))


class RetinaNetOutput(NamedTuple):
    """One entry a map, cell by cell. logits: (B, A, C); deltas: (B, A, 4); anchors: (A, 4), or (B, A, 4) of the
    selected. sides: rows and columns of the map."""

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]
    sides: list[tuple[int, int]]


class Subnet(nn.Module):
    """A few 3x3 convolutions with ReLU and a last one (section 4.1), one for all maps. bias: that the last begins with.

    Weights are drawn from N(0, .01).
    """

    def __init__(self, channels: int, convs: int, outputs: int, bias: float = 0.0) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs))
        self.last = nn.Conv2d(channels, outputs, 3, padding=1)
        for layer in (*self.convs, self.last):
            nn.init.normal_(layer.weight, std=0.01)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        nn.init.constant_(self.last.bias, bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, columns: int) -> Tensor:
        """(B, channels, H, W) -> (B, H * W * anchors, columns): cells row by row, then the anchors of a cell."""
        for layer in self.convs:
            x = layer(x).relu_()
        return self.last(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns)


@MODELS.register("retinanet")
class RetinaNet(DenseDetector):
    """Backbone, feature pyramid, and two subnets on each of its maps (section 4, figure 3)."""

    config_type = RetinaNetConfig
    paper = Paper("Focal Loss for Dense Object Detection", 2017)
    class_layers = ("classifier.last.",)

    def __init__(self, config: RetinaNetConfig, classes: tuple[str, ...]) -> None:
        # torchvision's anchors belong to sides that are cut to whole pixels: they share these out
        floor = config.anchors == "torchvision"
        spec = InputSpec((config.size[0], config.size[1]), config.mean, config.std, resize="shortest", floor=floor)
        super().__init__(config, classes, spec)
        c = self.config = config

        # 4 feature pyramid backbone: P3 to P7
        self.backbone = create_backbone(c.backbone)
        check_pixels(self.backbone, "size", c.size[0])
        used = self.choose_maps(c.features, "features", min_stride=8)
        self.backbone.truncate(used[-1].name)
        self.freeze_layers(c.freeze_stages, c.freeze_norms)
        self.neck = FPN(used, c.channels, coarser=c.p6)

        # 4 anchors: areas of 32^2 to 512^2, at each place three sizes an octave and three shapes
        scales = [c.scales] * len(self.neck.info)
        if floor:  # so are the sizes of torchvision's
            strides = [info.stride for info in self.neck.info]
            scales = [[math.floor(stride * scale) / stride for scale in c.scales] for stride in strides]
        self.anchors = MapAnchors(c.anchors, self.neck.info, c.ratios, scales)
        each = len(c.ratios) * len(c.scales)

        # 4 classification and box regression subnet; 3.3, 4.1 initialization
        prior = -math.log((1 - c.prior) / c.prior)
        self.classifier = Subnet(c.channels, c.convs, each * len(classes), prior)
        self.regressor = Subnet(c.channels, c.convs, each * 4)

    def network(self, pixels: Tensor) -> RetinaNetOutput:
        """Normalised images -> logits, deltas and anchors of each map."""
        maps = list(self.neck(self.backbone(pad_to(pixels, self.config.size_divisor))).values())
        logits = [self.classifier(x, len(self.classes)) for x in maps]
        deltas = [self.regressor(x, 4) for x in maps]
        return RetinaNetOutput(logits, deltas, self.anchors(sides_of(maps)), sides_of(maps))

    # 4.1 training

    def assign(self, raw: RetinaNetOutput, targets: Targets) -> Match:
        """4, anchors: which object each anchor learns."""
        c = self.config
        objects = (targets.boxes, targets.valid, targets.ignore)
        return match_rpn(*objects, torch.cat(raw.anchors), fg_iou=c.fg_iou, bg_iou=c.bg_iou)

    def loss(self, raw: RetinaNetOutput, assignment: Match, targets: Targets) -> dict[str, Tensor]:
        """3, 4.1: the focal loss of all anchors, and the smooth L1 of the positive ones."""
        c = self.config
        outputs = torch.cat(raw.logits, 1), torch.cat(raw.deltas, 1)
        objects, weights = (targets.boxes, targets.labels), {"alpha": c.alpha, "gamma": c.gamma, "beta": c.beta}
        return retinanet_loss(*outputs, assignment, *objects, torch.cat(raw.anchors), CODER, **weights)

    # 4.1 inference

    def select(self, raw: RetinaNetOutput) -> tuple[RetinaNetOutput, Tensor]:
        """4.1: the best `pre_nms_top_n` pairs of anchor and class of each map; a pair beyond these scores 0."""
        found, first = [], 0
        for logits, deltas, anchors in zip(raw.logits, raw.deltas, raw.anchors):  # over maps
            index, best = best_pairs(logits.float(), self.config.pre_nms_top_n)
            found.append((best, gather_boxes(deltas, index), anchors[index], index + first))
            first += len(anchors)
        logits, deltas, anchors, indices = (list(part) for part in zip(*found))
        return RetinaNetOutput(logits, deltas, anchors, raw.sides), torch.cat(indices, 1)

    def decode(self, raw: RetinaNetOutput) -> Predictions:
        boxes = CODER.decode(torch.cat(raw.deltas, 1).float(), torch.cat(raw.anchors, -2))
        return Predictions(boxes, torch.cat(raw.logits, 1).float().sigmoid())

    # what it tells of itself

    def raw_outputs(self, images: Images) -> list[Tensor]:
        raw = self.network(self.normalise(images.pixels, images.sizes))
        return [torch.cat(raw.logits, 1), torch.cat(raw.deltas, 1)]

    def anchor_step(self, raw: RetinaNetOutput) -> AnchorStep:
        note = "three sizes an octave, so that some anchor is nearly as large as any object"
        return AnchorStep(raw.anchors, self.anchors.shapes(raw.sides), "anchors", note)

    def learned_steps(self, raw: RetinaNetOutput, targets: Targets, level: Tensor) -> list[Step]:
        """What training would learn from one image, and how much the focal loss heeds each place."""
        c, match, logits = self.config, self.assign(raw, targets), torch.cat(raw.logits, 1)
        classes = anchor_classes(match, targets.labels, logits.shape[-1])
        entropy, focal = (
            torch.where(match.index == IGNORED, 0, focal_loss(logits, classes, c.alpha, gamma).sum(-1))[0]
            for gamma in (0.0, c.gamma)
        )
        positive = match.index[0] >= 0
        learned = SampleStep(
            torch.cat(raw.anchors)[positive],
            match.index[0][positive],
            level=level[positive],
            name="matching",
            title="Matches to the objects (training)",
            text=f"What training would learn from this image: an object's anchors are those of IoU {c.fg_iou:g} and "
            f"more, and the best one ({{levels}}). All of less than {c.bg_iou:g} are background, none is left out.",
            captions=("matched", "drawn of the background, which is learned whole"),
            legend=("matched to", "background"),
        )
        return [learned, FocalStep(entropy, focal, positive, level, self.anchors.shapes(raw.sides), c.gamma)]


def best_pairs(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the anchors of the best `count` pairs of anchor and class, (B, K) int64 in their order, and their logits
    (B, K, C), -inf for other pairs; equals of the last of these pairs stay. logits: (B, A, C).
    """
    anchors = min(count, logits.shape[1])
    # a pair has fewer than `count` better ones only where its anchor's best pair has
    index = logits.amax(-1).topk(anchors, sorted=False).indices.sort().values
    kept = logits.gather(1, index.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
    pairs = kept.flatten(1)
    last = pairs.topk(min(count, pairs.shape[1])).values[:, -1].view(-1, 1, 1)
    return index, kept.masked_fill(kept < last, -torch.inf)
