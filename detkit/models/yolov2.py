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
import torch.nn.functional as F
from torch import Tensor, nn

from detkit.backbones import create_backbone
from detkit.backbones.darknet import convolution
from detkit.config import BackboneConfig, within
from detkit.errors import UserError
from detkit.models.base import Paper
from detkit.models.dense import DenseConfig, DenseDetector, has_batch_norm
from detkit.models.registry import MODELS
from detkit.models.shape_checks import check_pixels
from detkit.models.trace import AnchorStep, MapShape
from detkit.models.yolov1 import IMAGENET, UNIT
from detkit.ops import Match, assign_places, decode_places, reorg, world_size, yolov2_loss
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
        for key in ("convolutions", "joined"):
            for spec in getattr(self, key):
                if len(spec) != 3 or min(spec) < 1 or spec[1] % 2 == 0 or spec[2] != 1:
                    raise UserError(f"model.{key}: {spec} is not [channels, odd kernel, 1]")
        if not self.anchors or any(len(anchor) != 2 for anchor in self.anchors):
            raise UserError(f"model.anchors: {self.anchors} is not a list of [width, height]")
        if self.train_sizes and (len(self.train_sizes) != 2 or self.train_sizes[0] > self.train_sizes[1]):
            raise UserError(f"model.train_sizes: {self.train_sizes} is not [least, largest]")
        if self.passthrough is not None and self.passthrough % 4:
            raise UserError(f"model.passthrough: {self.passthrough} is not a multiple of 4")


class YOLOv2Output(NamedTuple):
    """raw: (B, places, 5 + C), see ops/yolov2.py. sides: rows and columns of the map. size: of the input, pixels."""

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
        self.convolutions, channels = self.layers(c.convolutions, last.channels, batch_norm)
        self.reduce = nn.Sequential()
        if finer:
            reduced = [] if c.passthrough is None else [[c.passthrough, 1, 1]]
            self.reduce, joining = self.layers(reduced, finer[-1].channels, batch_norm)
            channels += 4 * joining
        self.joined, channels = self.layers(c.joined, channels, batch_norm)
        self.stride = last.stride
        self.single_cell_norm = batch_norm and self.dry_run()[-1] == 1
        steps = range(c.train_sizes[0], c.train_sizes[1] + 1, self.stride) if c.train_sizes else [c.size]
        self.train_sizes = list(steps)
        if c.train_sizes and (steps[-1] != c.train_sizes[1] or steps[0] % self.stride):
            raise UserError(f"model.train_sizes: {c.train_sizes} are not multiples of the map's stride, {self.stride}")

        # 2 anchor boxes, dimension clusters: boxes in each cell, each with its objectness and classes
        self.register_buffer("anchors", torch.tensor(c.anchors), persistent=False)
        self.head = nn.Conv2d(channels, len(c.anchors) * (5 + len(classes)), 1)
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(channels))
        nn.init.zeros_(self.head.bias)  # pyright: ignore[reportArgumentType]
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def layers(specs: list[list[int]], channels: int, batch_norm: bool) -> tuple[nn.Sequential, int]:
        """Return convolutions, and the channels that they give."""
        layers = nn.Sequential()
        for outputs, kernel, stride in specs:
            layers.append(convolution(channels, outputs, kernel, stride, batch_norm))
            channels = outputs
        return layers, channels

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        features = self.backbone(pixels)
        return [features[name] for name in self.features]

    def network(self, pixels: Tensor) -> YOLOv2Output:
        """Normalised images -> raw outputs of all places."""
        *finer, x = self.feature_maps(pixels)
        if self.config.pool:
            x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2, 1)
        x = self.convolutions(x)
        if finer:
            x = torch.cat((reorg(self.reduce(finer[0]), self.config.adjacent), x), 1)
        x = self.head(self.joined(x)).permute(0, 2, 3, 1)
        raw = x.reshape(x.shape[0], -1, 5 + len(self.classes))
        return YOLOv2Output(raw, (x.shape[1], x.shape[2]), (pixels.shape[-2], pixels.shape[-1]))

    def scale(self, raw: YOLOv2Output) -> Tensor:
        """Return pixels a cell: width, height, width, height."""
        (rows, columns), (height, width) = raw.sides, raw.size
        scale = self.anchors.new_full((4,), width / columns)
        scale[1::2] = height / rows
        return scale

    def boxes(self, raw: YOLOv2Output) -> Tensor:
        """Return the predicted boxes (B, places, 4) xyxy in cells."""
        return decode_places(raw.raw, self.anchors, *raw.sides)

    # training

    @property
    def train_input(self) -> InputSpec:
        return replace(self.input, size=(self.train_sizes[-1],) * 2)

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """2, multi-scale training: of every batch at a side drawn at random."""
        self.check_batch(len(images))
        pixels = self.normalise(images.pixels, images.sizes)
        if self.training and len(self.train_sizes) > 1:
            side = self.train_sizes[int(torch.randint(len(self.train_sizes), ()))]  # on the host: no sync
            factor = side / pixels.shape[-1]
            pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
            targets = replace(targets, boxes=targets.boxes * factor)
        raw = self.network(pixels)
        return self.loss(raw, self.assign(raw, targets), targets)

    def assign(self, raw: YOLOv2Output, targets: Targets) -> Match:
        """Which object each place learns; of several at a place one at random, drawn anew at every visit."""
        priority = torch.rand(targets.labels.shape, device=targets.labels.device)
        objects = (targets.boxes / self.scale(raw), targets.valid, targets.ignore)
        return assign_places(self.boxes(raw), *objects, self.anchors, *raw.sides, priority)

    def loss(self, raw: YOLOv2Output, assignment: Match, targets: Targets) -> dict[str, Tensor]:
        c = self.config
        prior = torch.where(self.seen < c.prior_images, PRIOR_WEIGHT, 0.0)
        if self.training:
            self.seen += len(raw.raw) * world_size()
        objects = (targets.boxes / self.scale(raw), targets.labels)
        weights = {"coord": c.coord, "positive": c.object, "negative": c.noobj, "classes": c.class_weight}
        places = (raw.raw, self.boxes(raw), assignment, *objects, self.anchors, *raw.sides)
        return yolov2_loss(*places, **weights, ignore_iou=c.ignore_iou, prior=prior)

    def decode(self, raw: YOLOv2Output) -> Predictions:
        """Boxes of all places; a box's score for a class is its objectness times the class's softmax."""
        values = raw.raw.float()
        scores = values[..., 4:5].sigmoid() * values[..., 5:].softmax(-1)
        return Predictions(self.boxes(raw) * self.scale(raw), scores)

    # what it tells of itself

    def raw_outputs(self, images: Images) -> list[Tensor]:
        raw = self.network(self.normalise(images.pixels)).raw
        return [raw[..., :4], raw[..., 4:]]

    def anchor_step(self, raw: YOLOv2Output) -> AnchorStep:
        scale = self.scale(raw)
        still = torch.zeros(1, raw.raw.shape[1], 4, device=scale.device)  # in the middle of its cell, as the anchor is
        boxes = decode_places(still, self.anchors, *raw.sides)[0] * scale
        (rows, columns), (height, width) = raw.sides, raw.size
        note = "their shapes are those that k-means found among the objects of a data set"
        return AnchorStep([boxes], [MapShape(rows, columns, height / rows, width / columns)], "anchors", note)
