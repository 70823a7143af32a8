"""YOLOv2: YOLO9000: Better, Faster, Stronger (Redmon and Farhadi, CVPR 2017), sections 2 and 3, beside the paper.

Where the paper and the authors' program darknet differ or say nothing, and what detkit does:
- The finer map passes through a 1x1 convolution to 64 channels before its cells become channels, and darknet's layer
  for that mixes far cells, not adjacent ones (darknet); the paper's are `model.passthrough: null`, `adjacent: true`.
- The loss is that of darknet's region layer, of which the paper says nothing: see ops/yolov2.py.
- Boxes without an object learn their anchors for the first 12,800 images (darknet).
- Of two objects at a place, one of them at random is the place's, drawn anew at every visit (darknet: the last one of a
  list in random order).
- A new size is drawn for every batch, from 320 to 608; in darknet for every ten. Images are resized twice.
- Difficult objects are not trained on (`data.difficult: false`, darknet); a place with such objects only has no loss,
  nor has what overlaps them, where in darknet they are background.
"""

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detkit.backbones import create_backbone
from detkit.backbones.darknet import convolutions
from detkit.config import BackboneConfig, within
from detkit.errors import UserError
from detkit.models.base import Paper
from detkit.models.dense import DenseConfig, DenseDetector, has_batch_norm
from detkit.models.registry import MODELS
from detkit.models.shape_checks import check_pixels
from detkit.models.trace import AnchorStep, MapShape, Step
from detkit.models.yolo_parts import (
    anchor_choice,
    at_random_size,
    check_anchors,
    check_convolutions,
    check_train_sizes,
    pool_same,
    sizes_between,
)
from detkit.models.yolov1 import IMAGENET, UNIT
from detkit.ops import (
    AnchorMap,
    Match,
    PlaceMatch,
    Places,
    anchor_boxes,
    assign_places,
    decode_places,
    lay_places,
    reorg,
    world_size,
    yolov2_loss,
)
from detkit.structures import Images, InputSpec, Predictions, Targets

VOC_ANCHORS = [[1.3221, 1.73145], [3.19275, 4.00944], [5.05587, 8.09892], [9.47112, 4.84053], [11.2364, 10.0071]]
PRIOR_WEIGHT = 0.01  # of the boxes that learn their anchors


@dataclass
class YOLOv2Config(DenseConfig):
    """The defaults are YOLOv2 for VOC, at 416 pixels (section 2, and the authors' yolov2-voc.cfg)."""

    name: str = "yolov2"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("darknet19"))
    size: int = within("[1, 10000]", 416)
    """Side of the stretched input, pixels."""
    train_sizes: list[int] = within("[1, 10000]", [320, 608])
    """Least and largest side in training, in steps of the map's stride; empty: as `size`."""
    mean: tuple[float, float, float] | None = None
    """Of the input's channels, RGB, in units of 255; null: 0 for darknet's backbones, else ImageNet's."""
    std: tuple[float, float, float] | None = within("(0, inf)", None)
    """Of the input's channels, RGB, in units of 255; null: 1 for darknet's backbones, else ImageNet's."""
    feature: str | None = None
    """The backbone's map; null: the last."""
    pool: bool = False
    """Whether a 2x2 max pool of stride 1 follows it, as in Tiny YOLO."""
    convolutions: list[list[int]] = field(default_factory=lambda: [[1024, 3, 1], [1024, 3, 1]])
    """That follow, each [channels, kernel, 1]."""
    passthrough: int | None = within("[0, 100000]", 64)
    """Channels that the map of twice the side is reduced to before it joins, where the backbone gives one, a multiple
    of 4; null: it joins as it is, as in the paper; 0: it does not."""
    adjacent: bool = False
    """Whether each 2x2 adjacent cells of it become one, as in the paper, or cells as in darknet, and its weights."""
    joined: list[list[int]] = field(default_factory=lambda: [[1024, 3, 1]])
    """Convolutions after the maps are joined, or without such a map after the others, each [channels, kernel, 1]."""
    batch_norm: bool | None = None
    """Whether these have batch norm; null: if the backbone has."""
    anchors: list[list[float]] = within("(0, inf)", VOC_ANCHORS)
    """Width and height of each, in cells, see `detkit dataset anchors`."""
    coord: float = within("[0, inf)", 1.0)
    """Weight of the box errors in the loss, coord_scale."""
    object: float = within("[0, inf)", 5.0)
    """Weight of the objectness of places with an object, object_scale."""
    noobj: float = within("[0, inf)", 1.0)
    """Weight of the objectness of places without, noobject_scale."""
    class_weight: float = within("[0, inf)", 1.0)
    """Weight of the cross-entropy of the classes, class_scale."""
    ignore_iou: float = within("[0, 1]", 0.6)
    """IoU of a predicted box with an object above which its objectness is not pushed to 0, thresh."""
    prior_images: int = within("[0, inf)", 12800)
    """Training images for which boxes without an object learn their anchors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_convolutions("convolutions", self.convolutions)
        check_convolutions("joined", self.joined)
        check_anchors(self.anchors)
        check_train_sizes(self.train_sizes)
        if self.passthrough is not None and self.passthrough % 4:
            raise UserError(f"model.passthrough: {self.passthrough} is not a multiple of 4")


class YOLOv2Output(NamedTuple):
    """raw: (B, places, 5 + C), see ops/places.py. sides: rows and columns of the map. size: of the input, pixels."""

    raw: Tensor
    sides: tuple[int, int]
    size: tuple[int, int]


@MODELS.register("yolov2")
class YOLOv2(DenseDetector):
    """Backbone, convolutions, the finer map that joins, and a 1x1 convolution: anchors in each cell (section 2)."""

    config_type = YOLOv2Config
    paper = Paper("YOLO9000: Better, Faster, Stronger", 2017)
    class_layers = ("head.",)
    anchors: Tensor
    slots: Tensor
    seen: Tensor

    def __init__(self, config: YOLOv2Config, classes: tuple[str, ...]) -> None:
        backbone = create_backbone(config.backbone)
        mean, std = UNIT if backbone.darknet else IMAGENET
        spec = InputSpec((config.size, config.size), config.mean or mean, config.std or std)
        super().__init__(config, classes, spec)
        c = self.config = config
        self.backbone = backbone

        # 2 fine-grained features: the last map, and the one of twice its side
        last = self.choose_maps(None if c.feature is None else [c.feature], "feature")[-1]
        backbone.truncate(last.name)
        check_pixels(backbone, "size", c.size)
        self.freeze_layers(c.freeze_stages, c.freeze_norms)
        finer = [info for info in backbone.info if info.stride * 2 == last.stride]
        self.features = [info.name for info in (*finer[-1:], last)]
        sides = self.dry_run()
        if c.passthrough == 0 or len(sides) == 1 or sides[0] != 2 * sides[1]:
            finer, self.features = [], self.features[-1:]
        batch_norm = has_batch_norm(backbone) if c.batch_norm is None else c.batch_norm
        self.convolutions, channels = convolutions(c.convolutions, last.channels, batch_norm)
        self.reduce = nn.Sequential()
        if finer:
            reduced = [] if c.passthrough is None else [[c.passthrough, 1, 1]]
            self.reduce, joining = convolutions(reduced, finer[-1].channels, batch_norm)
            channels += 4 * joining
        self.joined, channels = convolutions(c.joined, channels, batch_norm)
        self.single_cell_norm = batch_norm and self.dry_run()[-1] == 1
        self.train_sizes = sizes_between(c.train_sizes, c.size, last.stride)

        # 2 anchor boxes, dimension clusters: boxes in each cell, each with its objectness and classes
        self.register_buffer("anchors", torch.tensor(c.anchors), persistent=False)
        self.register_buffer("slots", torch.arange(len(c.anchors)), persistent=False)
        self.head = nn.Conv2d(channels, len(c.anchors) * (5 + len(classes)), 1)
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(channels))
        nn.init.zeros_(self.head.bias)  # pyright: ignore[reportArgumentType]
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        features = self.backbone(pixels)
        return [features[name] for name in self.features]

    def network(self, pixels: Tensor) -> YOLOv2Output:
        """Normalised images -> raw outputs of all places."""
        *finer, x = self.feature_maps(pixels)
        if self.config.pool:
            x = pool_same(x)
        x = self.convolutions(x)
        if finer:
            x = torch.cat((reorg(self.reduce(finer[0]), self.config.adjacent), x), 1)
        x = self.head(self.joined(x)).permute(0, 2, 3, 1)
        raw = x.reshape(x.shape[0], -1, 5 + len(self.classes))
        return YOLOv2Output(raw, (x.shape[1], x.shape[2]), (pixels.shape[-2], pixels.shape[-1]))

    def places(self, raw: YOLOv2Output) -> Places:
        """Return the anchors of each cell."""
        (rows, columns), (height, width) = raw.sides, raw.size
        cell = (width / columns, height / rows)
        anchors = torch.stack([side * pixels for side, pixels in zip(self.anchors.unbind(1), cell)], 1)
        return lay_places([AnchorMap(rows, columns, cell, anchors, self.slots)])

    # training

    @property
    def train_input(self) -> InputSpec:
        return replace(self.input, size=(self.train_sizes[-1],) * 2)

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """2, multi-scale training: of every batch at a side drawn at random."""
        self.check_batch(len(images))
        pixels = self.normalise(images.pixels, images.sizes)
        if self.training:
            pixels, targets = at_random_size(pixels, targets, self.train_sizes)
        raw = self.network(pixels)
        return self.loss(raw, self.assign(raw, targets), targets)

    def assign(self, raw: YOLOv2Output, targets: Targets) -> PlaceMatch:
        """Which object each place learns; of several at a place one at random, drawn anew at every visit."""
        priority = torch.rand(targets.labels.shape, device=targets.labels.device)
        places = self.places(raw)
        predicted, anchors = decode_places(raw.raw, places), places.maps[0].anchors
        return assign_places(predicted, targets.boxes, targets.valid, targets.ignore, anchors, places, priority)

    def loss(self, raw: YOLOv2Output, assignment: Match, targets: Targets) -> dict[str, Tensor]:
        c = self.config
        prior = torch.where(self.seen < c.prior_images, PRIOR_WEIGHT, 0.0)
        if self.training:
            self.seen += len(raw.raw) * world_size()
        places = self.places(raw)
        learned = (decode_places(raw.raw, places), assignment, targets.boxes, targets.labels, places)
        weights = {"coord": c.coord, "positive": c.object, "negative": c.noobj, "classes": c.class_weight}
        return yolov2_loss(raw.raw, *learned, **weights, ignore_iou=c.ignore_iou, prior=prior)

    def decode(self, raw: YOLOv2Output) -> Predictions:
        """Boxes of all places; a box's score for a class is its objectness times the class's softmax."""
        values = raw.raw.float()
        scores = values[..., 4:5].sigmoid() * values[..., 5:].softmax(-1)
        return Predictions(decode_places(raw.raw, self.places(raw)), scores)

    # what it tells of itself

    def raw_outputs(self, images: Images) -> list[Tensor]:
        raw = self.network(self.normalise(images.pixels)).raw
        return [raw[..., :4], raw[..., 4:]]

    def anchor_step(self, raw: YOLOv2Output) -> AnchorStep:
        places = self.places(raw)
        rows, columns, (width, height), *_ = places.maps[0]
        note = "their shapes are those that k-means found among the objects of a data set"
        return AnchorStep([anchor_boxes(places)], [MapShape(rows, columns, height, width)], "anchors", note)

    def learned_steps(self, raw: YOLOv2Output, targets: Targets, level: Tensor) -> list[Step]:
        match, anchors, slots = self.assign(raw, targets), self.places(raw).maps[0].anchors, self.slots.unsqueeze(0)
        return [anchor_choice(match, targets, anchors, slots, self.anchor_step(raw), self.config.ignore_iou)]
