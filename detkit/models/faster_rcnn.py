"""Faster R-CNN (Ren et al., NIPS 2015), beside the paper from top to bottom.

Where the paper and its Python code differ, and what detkit does:
- Training is the approximate joint one (section 3.2, and the code's end2end), where proposals are constants; with
  `model.training: alternating` it is the paper's 4-step one. The RPN's steps are then twice as long as `train` says, as
  published: 80,000 iterations to Fast R-CNN's 40,000, their milestones alike.
- The RPN has one logit an anchor, not two (the paper's note in section 3.1: logistic regression).
- Both of its losses are divided by the number of anchors drawn (code), not balanced by lambda = 10 (paper).
- Deltas of the second stage are scaled by .1, .1, .2, .2 (code), not by statistics of the data (Fast R-CNN).
- Difficult objects are not trained on, as in the code (`data.difficult: false`), but anchors and regions that overlap
  them alone are left out of the loss, where in the code they are background.
- Boxes are continuous: no "+ 1".
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones import create_backbone, fully_connected
from detkit.errors import UserError
from detkit.models.base import SGD, Paper
from detkit.models.fpn import FPN
from detkit.models.region import (
    MapFeatures,
    PooledConfig,
    RegionDetector,
    RegionHead,
    at_least_one,
    proposals_of,
    sample_regions,
)
from detkit.models.registry import MODELS
from detkit.models.rpn import CODER as RPN_CODER
from detkit.models.rpn import RPNHead, propose
from detkit.ops import (
    BACKGROUND,
    Match,
    grid_anchors,
    match_rpn,
    region_loss,
    rpn_anchors,
    rpn_loss,
    sample,
    torchvision_anchors,
)
from detkit.structures import Images, InputSpec, Predictions, Proposals, Targets

CELLS = {"py_faster_rcnn": rpn_anchors, "torchvision": torchvision_anchors}
PYRAMID_WIDTH = 1024  # FPN, section 4.2: of the two fully connected layers, narrower than those of VGG


@dataclass
class FasterRCNNConfig(PooledConfig):
    """The defaults are Faster R-CNN for VOC (sections 3.1 to 3.3, and the authors' code); see PooledConfig, too.

    training: `joint` or `alternating`. neck: `none`, with the backbone's map that its region tail follows, or `fpn`
    with `channels` over `features`, null = all maps of stride 4 and up. canonical: pixels a side of a region for the
    map of stride 16. multiple: batches are padded to sides that are a multiple of this, so that the maps of a pyramid
    fit each other.
    neck_norm: batch norm in the neck. head_convs: 3x3 convolutions with batch norm in front of one fully connected
    layer, in the place of two such layers, for a neck. Published with 4 of them and `rpn_convs` 2 (Li et al., 2021).
    ratios (height / width) and scales (times the map's stride): the anchors; anchors: whose, `py_faster_rcnn` or
    `torchvision`, see ops/anchors.py. rpn_width: channels of its convolution, rpn_convs: how many.
    allow_border: whether anchors that cross the image's border are trained on, as in FPN (section 5.1).
    rpn_positive, rpn_negative: IoU; rpn_number, rpn_fraction: anchors drawn an image, and most positives.
    before, after: best proposals before and after their NMS at rpn_iou, in training; test_before, test_after: else.
    min_size: pixels of the image that both sides of a proposal have. beta: where the smooth L1 of the regions' deltas
    turns from a square into a line.
    """

    name: str = "faster_rcnn"
    training: str = "joint"
    features: list[str] | None = None
    neck: str = "none"
    channels: int = 256
    canonical_scale: float = 224.0
    size_divisor: int = 1
    neck_norm: bool = False
    head_convs: int = 0
    anchors: str = "py_faster_rcnn"
    ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    scales: list[float] = field(default_factory=lambda: [8.0, 16.0, 32.0])
    rpn_width: int = 512
    rpn_convs: int = 1
    allow_border: bool = False
    rpn_fg_iou: float = 0.7
    rpn_bg_iou: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_nms_iou: float = 0.7
    pre_nms_top_n: int = 12000
    post_nms_top_n: int = 2000
    test_pre_nms_top_n: int = 6000
    test_post_nms_top_n: int = 300
    min_size: float = 16.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neck not in ("none", "fpn"):
            raise UserError(f"model.neck: {self.neck!r} is not one of none, fpn")
        if self.anchors not in CELLS:
            raise UserError(f"model.anchors: {self.anchors!r} is not one of {', '.join(CELLS)}")
        if self.neck == "none" and (self.head_convs or self.neck_norm):
            raise UserError("model.head_convs and model.neck_norm go with model.neck=fpn; without it there is no such")
        at_least_one(self, "size_divisor", "rpn_convs")
        if self.training not in ("joint", "alternating"):
            raise UserError(f"model.training: {self.training!r} is not one of joint, alternating")


@dataclass(frozen=True)
class Propose:
    """A stage: the RPN's regions of all training images, to a store in the run's folder, for the stage after it."""

    name: str
    store: str

    def run(self, detector: "FasterRCNN", run: Any) -> None:
        run.take_resumed()
        run.propose(detector, self.store)


# 3.2, 4-step alternating training: the store of step 2, and that of step 4
STORES = ("proposals/step1.npz", "proposals/step3.npz")
ALTERNATING = (
    SGD("rpn", iterations_factor=2, can_evaluate=False),  # step 1
    Propose("propose", STORES[0]),
    SGD("fast_rcnn", can_evaluate=False, store=STORES[0]),  # step 2
    SGD("rpn_shared", iterations_factor=2, can_evaluate=False),  # step 3
    Propose("propose_shared", STORES[1]),
    SGD("fast_rcnn_shared", store=STORES[1]),  # step 4
)


@MODELS.register("faster_rcnn")
class FasterRCNN(RegionDetector):
    """Backbone (and neck), region proposal network, and a region head on the same maps."""

    config_type = FasterRCNNConfig
    paper = Paper("Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", 2015)
    stage = "sgd"  # of training, see `begin_stage`

    def __init__(self, config: FasterRCNNConfig, classes: tuple[str, ...]) -> None:
        # to its anchors belong its images' sides: they share these out
        floor = config.anchors == "torchvision"
        spec = InputSpec((config.size[0], config.size[1]), config.mean, config.std, resize="shortest", floor=floor)
        super().__init__(config, classes, spec)
        c = self.config = config
        self.backbone = create_backbone(c.backbone, tail=c.neck == "none")
        known = {info.name: info for info in self.backbone.info}
        self.features = [self.backbone.region]
        if c.neck == "fpn":
            self.features = c.features or [info.name for info in self.backbone.info if info.stride >= 4]
        elif c.features is not None:
            raise UserError(f"model.features: without a neck regions are pooled from {self.features[0]} alone")
        for name in self.features:
            if name not in known:
                raise UserError(f"model.features: {c.backbone.name} gives the maps {', '.join(known)}, not {name!r}")
        info = tuple(known[name] for name in self.features)
        if c.neck == "none":
            tail = self.take_tail(c.pool_size)
        else:
            self.backbone.truncate(self.features[-1])
            width = min(self.backbone.width, PYRAMID_WIDTH)
            if c.head_convs:
                tail = convolutional(c.channels, c.head_convs, c.pool_size, width)
            else:
                tail = fully_connected(c.channels * c.pool_size**2, width)
        self.neck = FPN(info, c.channels, c.neck_norm) if c.neck == "fpn" else None
        maps = info if self.neck is None else self.neck.info

        # 3.1 region proposal network
        self.strides = [feature.stride for feature in maps]
        self.rpn = RPNHead(maps[0].channels, c.rpn_width, len(c.ratios) * len(c.scales), c.rpn_convs)
        for number, stride in enumerate(self.strides):
            cell = CELLS[c.anchors](stride, c.ratios, c.scales)
            self.register_buffer(f"cell{number}", cell, persistent=False)

        # 3.2 Fast R-CNN on the same maps; the coarsest map of a pyramid serves the RPN alone
        pooled = maps if self.neck is None else maps[:-1]
        self.region_features = MapFeatures(pooled, c.pool, c.pool_size, c.canonical_scale)
        self.head = RegionHead(tail, maps[0].channels, c.pool_size, len(classes))
        self.freeze_layers(c.freeze_stages, c.freeze_norms)

    def stages(self) -> Sequence[SGD | Propose]:
        return ALTERNATING if self.config.training == "alternating" else super().stages()

    def begin_stage(self, stage: str) -> None:
        """3.2: what a step of the alternating training learns, and from where."""
        self.stage = stage
        if stage == "sgd":
            return
        anew = {"fast_rcnn": ("backbone", "neck"), "rpn_shared": ("rpn",)}.get(stage, ())
        if anew:  # step 2 begins with ImageNet's weights once more: until step 3 the two networks share nothing
            fresh = FasterRCNN(self.config, self.classes)
            for name in anew:
                if getattr(self, name) is not None:
                    self.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())
        self.requires_grad_(True)
        self.freeze_layers(self.config.freeze_stages, self.config.freeze_norms)
        if stage.endswith("_shared"):
            self.freeze(self.backbone, *([] if self.neck is None else [self.neck]))
        self.freeze(self.head if stage.startswith("rpn") else self.rpn)

    @property
    def counts(self) -> tuple[int, int]:
        """Proposals before and after NMS."""
        c = self.config
        many = self.training or self.stage.startswith("propose")
        return (c.pre_nms_top_n, c.post_nms_top_n) if many else (c.test_pre_nms_top_n, c.test_post_nms_top_n)

    def maps(self, images: Images) -> list[Tensor]:
        """Images -> feature maps, finest first."""
        features = self.backbone(pad_to(self.normalise(images), self.config.size_divisor))
        if self.neck is not None:
            return list(self.neck(features).values())
        return [features[name] for name in self.features]

    def anchors(self, maps: list[Tensor]) -> list[Tensor]:
        """3.1.1: the anchors (A, 4) of each map, in pixels of the input."""
        strides: list[Any] = [*self.strides]
        if self.config.anchors == "torchvision":
            # torchvision shares the input out among a map's cells, which on the coarsest map is less than its stride
            sides = [side * strides[0] for side in maps[0].shape[-2:]]
            strides = [tuple(side // cells for side, cells in zip(sides, x.shape[-2:])) for x in maps]
        return [
            grid_anchors(x.shape[-2], x.shape[-1], stride, self.get_buffer(f"cell{number}"))
            for number, (x, stride) in enumerate(zip(maps, strides))
        ]

    def min_size(self, images: Images) -> Tensor:
        """3.3 (code): the least side of a proposal (B,), in pixels of the input."""
        return self.config.min_size * (images.sizes / images.original).amin(1)

    def proposals(self, images: Images, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor]) -> Proposals:
        """3.3: the best boxes of the RPN."""
        c, (before, after) = self.config, self.counts
        min_size = self.min_size(images)
        return propose(
            logits,
            deltas,
            anchors,
            images.sizes,
            min_size,
            pre_nms_top_n=before,
            post_nms_top_n=after,
            nms_iou=c.rpn_nms_iou,
        )

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        maps = self.maps(images)
        if self.stage.startswith("fast_rcnn"):
            return self.region_losses(maps, targets, proposals_of(images))
        logits, deltas = self.rpn(maps)
        anchors = self.anchors(maps)
        losses = self.rpn_losses(images, targets, logits, deltas, anchors)
        if self.stage.startswith("rpn"):
            return losses
        return losses | self.region_losses(maps, targets, self.proposals(images, logits, deltas, anchors))

    def rpn_losses(
        self, images: Images, targets: Targets, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """3.1.2, 3.1.3: the RPN learns from anchors inside the image."""
        every = torch.cat(anchors)
        match = self.match(images, targets, every)
        index, drawn = self.draw(match)
        return rpn_loss(
            torch.cat(logits, 1), torch.cat(deltas, 1), match, index, drawn, targets.boxes, every, RPN_CODER
        )

    def match(self, images: Images, targets: Targets, anchors: Tensor) -> Match:
        """3.1.2: which object each anchor (A, 4) learns."""
        c = self.config
        inside = (anchors[:, :2] >= 0).all(-1) & (anchors[:, 2:] <= images.sizes.flip(-1).unsqueeze(1)).all(-1)
        inside |= c.allow_border
        objects = (targets.boxes, targets.valid, targets.ignore)
        return match_rpn(*objects, anchors, inside, c.rpn_fg_iou, c.rpn_bg_iou)

    def draw(self, match: Match) -> tuple[Tensor, Tensor]:
        """3.1.3: the anchors that are learnt from, see `sample`."""
        c = self.config
        return sample(match.index >= 0, match.index == BACKGROUND, c.rpn_batch_size_per_image, c.rpn_positive_fraction)

    def region_losses(self, maps: list[Tensor], targets: Targets, given: Proposals) -> dict[str, Tensor]:
        """3.2: Fast R-CNN learns from proposals, which are constants."""
        sampled = sample_regions(given.boxes, given.valid, targets, len(self.classes), self.config)
        logits, deltas = self.regions(maps, sampled.boxes)
        wanted = self.head.normalise(sampled.wanted, sampled.target)
        return region_loss(logits, deltas, sampled.target, wanted, sampled.valid, self.config.beta)

    def regions(self, maps: list[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (B, R, 4) -> logits (B, R, C + 1), background last, and deltas (B, R, C, 4)."""
        pooled = self.region_features(maps[: len(self.region_features.strides)], boxes)
        return self.head(pooled, len(boxes))

    def predict(self, images: Images) -> Predictions:
        maps = self.maps(images)
        logits, deltas = self.rpn(maps)
        given = self.proposals(images, logits, deltas, self.anchors(maps))
        logits, deltas = self.regions(maps, given.boxes)
        scores = logits.float().softmax(-1)[..., :-1]
        boxes = self.head.decode(deltas.float(), given.boxes)
        # proposals that are not there are detected as nothing
        return Predictions(boxes, torch.where(given.valid.unsqueeze(-1), scores, -torch.inf))

    def propose(self, images: Images) -> Proposals:
        """3.1, 3.3: what the RPN alone finds, in pixels of the input."""
        maps = self.maps(images)
        logits, deltas = self.rpn(maps)
        return self.proposals(images, logits, deltas, self.anchors(maps))


def convolutional(channels: int, depth: int, size: int, width: int) -> nn.Sequential:
    """Return `depth` 3x3 convolutions with batch norm, then one fully connected layer.

    It takes (R, channels, size, size) to (R, width). The region head of Group Normalization (Wu and He, 2018, section
    4.2), there with group norm.
    """
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        nn.init.kaiming_normal_(layers[-3].weight, mode="fan_out", nonlinearity="relu")  # pyright: ignore
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size**2, width), nn.ReLU())


def pad_to(pixels: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) with 0 at the right and bottom to sides that are a multiple of `multiple`."""
    if multiple == 1:
        return pixels
    # whether or not there is anything to pad: an exported network has sides that are not known beforehand
    down, right = (-side % multiple for side in pixels.shape[-2:])
    return F.pad(pixels, (0, right, 0, down))
