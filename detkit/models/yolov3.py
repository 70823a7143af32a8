"""YOLOv3: An Incremental Improvement (Redmon and Farhadi, 2018), section 2, beside the paper from top to bottom.

Where the paper and the authors' program darknet differ or say nothing, and what detkit does:
- The paper has squared errors; in darknet's yolo layer, as here, all but the sides have cross-entropy, whose gradient
  is that of the paper's text, target - prediction. Box errors are weighed by 2 - the object's share of the input's
  area (darknet). See ops/yolov3.py.
- A place at which several objects lie learns the box of one of them at random, drawn anew at every visit, and the
  classes of all (darknet: the last one of a list in random order).
- A prediction is ignored above an IoU of .5 (paper, yolov3-voc.cfg); yolov3.cfg and yolov3-tiny.cfg, for COCO, have
  .7 (`model.ignore_iou`).
- Images keep their aspect ratio, in the middle of a grey square; in training anywhere on it (darknet).
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
from detkit.backbones.darknet import convolution, convolutions
from detkit.config import BackboneConfig, within
from detkit.errors import UserError
from detkit.models.base import Paper
from detkit.models.dense import DenseConfig, DenseDetector, has_batch_norm
from detkit.models.map_anchors import sides_of
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
    PlaceMatch,
    Places,
    anchor_boxes,
    assign_places,
    decode_places,
    lay_places,
    letterbox,
    yolov3_loss,
)
from detkit.structures import Images, InputSpec, Predictions, Targets

COCO_ANCHORS = [[10, 13], [16, 30], [33, 23], [30, 61], [62, 45], [59, 119], [116, 90], [156, 198], [373, 326]]
GREY = 0.5  # of the canvas, in units of 255


def published_convolutions(channels: int) -> list[list[int]]:
    """Return the convolutions of a scale (section 2.3, darknet's cfg)."""
    return [[channels, 1, 1], [2 * channels, 3, 1]] * 3


@dataclass
class YOLOv3Config(DenseConfig):
    """The defaults are YOLOv3 for VOC, at 416 pixels (section 2, and the authors' yolov3-voc.cfg)."""

    name: str = "yolov3"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("darknet53"))
    size: int = within("[1, 10000]", 416)
    """Side of the square that images are laid on, pixels."""
    train_sizes: list[int] = within("[1, 10000]", [320, 608])
    """Least and largest side in training, in steps of the coarsest map's stride; empty: as `size`."""
    mean: tuple[float, float, float] | None = None
    """Of the input's channels, RGB, in units of 255; null: 0 for darknet's backbones, else ImageNet's."""
    std: tuple[float, float, float] | None = within("(0, inf)", None)
    """Of the input's channels, RGB, in units of 255; null: 1 for darknet's backbones, else ImageNet's."""
    features: list[str] | None = None
    """The backbone's maps, finest first; null: the coarsest ones, at most as many as `convolutions` has scales."""
    pool: bool = False
    """Whether a 2x2 max pool of stride 1 follows the coarsest map, as in Tiny YOLOv3."""
    convolutions: list[list[list[int]]] = field(
        default_factory=lambda: [published_convolutions(512 >> n) for n in range(3)]
    )
    """Of each scale, coarsest first, each [channels, kernel, 1]; in front of the last the finer scale branches off."""
    reduced: list[int] = within("[1, 100000]", [256, 128])
    """Channels that a coarser scale is reduced to before it is upsampled, of each scale but the coarsest."""
    batch_norm: bool | None = None
    """Whether all these have batch norm; null: if the backbone has."""
    anchors: list[list[float]] = within("(0, inf)", COCO_ANCHORS)
    """Width and height of each, in pixels, smallest first, see `detkit dataset anchors`."""
    masks: list[list[int]] | None = within("[0, inf)", None)
    """Which of them each scale has, coarsest first, by their numbers from 0; null: shared out, the coarsest's last."""
    ignore_iou: float = within("[0, 1]", 0.5)
    """IoU of a predicted box with an object above which its objectness is not pushed to 0, ignore_thresh."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for specs in self.convolutions:
            check_convolutions("convolutions", specs)
        if not self.convolutions or not all(self.convolutions):
            raise UserError("model.convolutions: every scale needs one or more [channels, odd kernel, 1]")
        if len(self.reduced) != len(self.convolutions) - 1:
            scales = len(self.convolutions)
            raise UserError(
                f"model.reduced: {self.reduced}, but model.convolutions has {scales} scales: {scales - 1} of it"
            )
        check_anchors(self.anchors)
        check_train_sizes(self.train_sizes)
        for mask in self.masks or []:
            if not mask or len(set(mask)) < len(mask) or max(mask) >= len(self.anchors):
                raise UserError(
                    f"model.masks: {mask} are not numbers of model.anchors, from 0 to {len(self.anchors) - 1}"
                )


class YOLOv3Output(NamedTuple):
    """raw: (B, places, 5 + C), see ops/places.py. sides: rows and columns of each map, coarsest first. size: of the
    canvas, pixels. offset: (B, 2) where each image begins on it, right and down; None for the canvas itself."""

    raw: Tensor
    sides: list[tuple[int, int]]
    size: tuple[int, int]
    offset: Tensor | None = None


class Scale(nn.Module):
    """The layers of one scale, in the order of darknet's files.

    inputs: channels of the backbone's map. coarser: of the coarser scale, and what they are reduced to; None for the
    coarsest. specs: of the convolutions. outputs: numbers a cell.
    """

    def __init__(
        self, inputs: int, coarser: tuple[int, int] | None, specs: list[list[int]], outputs: int, batch_norm: bool
    ) -> None:
        super().__init__()
        self.reduce = nn.Sequential() if coarser is None else convolution(*coarser, 1, 1, batch_norm)
        reduced = 0 if coarser is None else coarser[1]
        self.convolutions, self.channels = convolutions(specs[:-1], inputs + reduced, batch_norm)
        self.last, channels = convolutions(specs[-1:], self.channels, batch_norm)
        self.head = nn.Conv2d(channels, outputs, 1)
        nn.init.normal_(self.head.weight, std=0.1 / math.sqrt(channels))
        nn.init.zeros_(self.head.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, coarser: Tensor | None) -> tuple[Tensor, Tensor]:
        """The backbone's map, and what the coarser scale passes on -> what the next gets, raw outputs (B, O, H, W)."""
        if coarser is not None:
            upsampled = F.interpolate(self.reduce(coarser), (x.shape[-2], x.shape[-1]))
            x = torch.cat((upsampled, x), 1)
        x = self.convolutions(x)
        return x, self.head(self.last(x))


@MODELS.register("yolov3")
class YOLOv3(DenseDetector):
    """Backbone, and predictions on three of its maps, to each of which the coarser one adds what it knows (2.3)."""

    config_type = YOLOv3Config
    paper = Paper("YOLOv3: An Incremental Improvement", 2018)
    anchors: Tensor
    map_anchors: Tensor
    slots: Tensor

    def __init__(self, config: YOLOv3Config, classes: tuple[str, ...]) -> None:
        backbone = create_backbone(config.backbone)
        mean, std = UNIT if backbone.darknet else IMAGENET
        spec = InputSpec((config.size, config.size), config.mean or mean, config.std or std, resize="letterbox")
        super().__init__(config, classes, spec)
        c = self.config = config
        self.backbone = backbone

        # 2.3 predictions across scales
        known = self.choose_maps(c.features, "features")
        used = known if c.features else known[-len(c.convolutions) :]
        used.sort(key=lambda info: info.stride)
        if c.features and len(used) != len(c.convolutions):
            raise UserError(
                f"model.features: {len(used)} maps, but model.convolutions has {len(c.convolutions)} scales"
            )
        backbone.truncate(used[-1].name)
        check_pixels(backbone, "size", c.size)
        self.freeze_layers(c.freeze_stages, c.freeze_norms)
        self.features = [info.name for info in used]
        batch_norm = has_batch_norm(backbone) if c.batch_norm is None else c.batch_norm
        self.single_cell_norm = self.dry_run()[-1] == 1 and batch_norm
        self.stride = used[-1].stride
        self.train_sizes = sizes_between(c.train_sizes, c.size, self.stride)

        # 2.1 bounding box prediction: anchors by k-means, shared out to the scales
        anchors = torch.tensor(c.anchors, dtype=torch.float32)
        masks = shared_out(len(anchors), len(used)) if c.masks is None else c.masks
        if len(masks) != len(used) or not all(masks):
            counts = f"{len(masks)} masks, {len(anchors)} anchors"
            raise UserError(f"model.anchors, model.masks: {counts} for {len(used)} scales; each needs its own")
        slots = torch.full((len(used), len(anchors)), -1)
        for own, mask in zip(slots, masks):
            own[mask] = torch.arange(len(mask))
        self.counts = [len(mask) for mask in masks]
        self.register_buffer("anchors", anchors, persistent=False)
        self.register_buffer("map_anchors", torch.cat([anchors[mask] for mask in masks]), persistent=False)
        self.register_buffer("slots", slots, persistent=False)

        self.scales, coarser = nn.ModuleList(), None
        for number, (info, count) in enumerate(zip(reversed(used), self.counts)):
            outputs = count * (5 + len(classes))
            scale = Scale(info.channels, coarser, c.convolutions[number], outputs, batch_norm)
            self.scales.append(scale)
            coarser = (scale.channels, c.reduced[number]) if number + 1 < len(used) else None

    @property
    def class_layers(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(f"scales.{number}.head." for number in range(len(self.scales)))

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        features = self.backbone(pixels)
        return [features[name] for name in self.features]

    def network(self, pixels: Tensor) -> YOLOv3Output:
        """Normalised images -> raw outputs of all places."""
        *finer, x = self.feature_maps(pixels)
        maps = [pool_same(x) if self.config.pool else x, *reversed(finer)]
        outputs, passed = [], None
        for scale, x in zip(self.scales, maps):
            passed, out = scale(x, passed)
            outputs.append(out.permute(0, 2, 3, 1).reshape(len(out), -1, 5 + len(self.classes)))
        return YOLOv3Output(torch.cat(outputs, 1), sides_of(maps), (pixels.shape[-2], pixels.shape[-1]))

    def compute(self, pixels: Tensor, sizes: Tensor | None) -> YOLOv3Output:
        """In the middle of a square; of a larger one where images are larger than `size`."""
        assert sizes is not None
        side = max(self.config.size, *(math.ceil(side / self.stride) * self.stride for side in pixels.shape[-2:]))
        canvas, offset = self.lay(pixels, sizes, side)
        return self.network(canvas)._replace(offset=offset)

    def lay(self, pixels: Tensor, sizes: Tensor, side: int, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return normalised images on canvases, see `letterbox`, and where they begin, right and down."""
        grey = (GREY * self.input.divisor - self._shift) * self._scale
        canvas, offset = letterbox(self.normalise(pixels), sizes, side, grey, share)
        return canvas, offset.flip(-1)

    def places(self, raw: YOLOv3Output) -> Places:
        """Return the anchors of each cell of each map."""
        (height, width), anchors = raw.size, self.map_anchors.split(self.counts)
        maps = zip(raw.sides, anchors, self.slots)
        return lay_places([AnchorMap(*side, (width / side[1], height / side[0]), *own) for side, *own in maps])

    # 2.1 training

    @property
    def train_input(self) -> InputSpec:
        return replace(self.input, size=(self.train_sizes[-1],) * 2)

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """2.5: of a batch at a side drawn at random, images anywhere on the canvas; in testing as in `compute`."""
        if not self.training:
            return super().losses(images, targets)
        self.check_batch(len(images))
        share = torch.rand(len(images), 2, device=images.pixels.device)
        pixels, offset = self.lay(images.pixels, images.sizes, self.train_sizes[-1], share)
        targets = replace(targets, boxes=targets.boxes + offset.repeat(1, 2).unsqueeze(1))
        pixels, targets = at_random_size(pixels, targets, self.train_sizes)
        raw = self.network(pixels)
        return self.loss(raw, self.assign(raw, targets), targets)

    def assign(self, raw: YOLOv3Output, targets: Targets) -> PlaceMatch:
        """Which object each place learns; of several at a place one at random, drawn anew at every visit."""
        priority, places = torch.rand(targets.labels.shape, device=targets.labels.device), self.places(raw)
        objects = (targets.boxes + self.shift(raw), targets.valid, targets.ignore)
        return assign_places(decode_places(raw.raw, places), *objects, self.anchors, places, priority)

    def loss(self, raw: YOLOv3Output, assignment: PlaceMatch, targets: Targets) -> dict[str, Tensor]:
        objects = (targets.boxes + self.shift(raw), targets.labels)
        return yolov3_loss(raw.raw, assignment, *objects, self.places(raw), self.config.ignore_iou)

    def shift(self, raw: YOLOv3Output) -> Tensor:
        """Return what takes boxes (B, N, 4) of images to those of the canvas."""
        zero = raw.raw.new_zeros(len(raw.raw), 2) if raw.offset is None else raw.offset
        return zero.repeat(1, 2).unsqueeze(1)

    def decode(self, raw: YOLOv3Output) -> Predictions:
        """2.2: boxes of all places; a box's score for a class is its objectness times the class's probability."""
        values = raw.raw.float()
        boxes = decode_places(values, self.places(raw)) - self.shift(raw)
        return Predictions(boxes, values[..., 4:5].sigmoid() * values[..., 5:].sigmoid())

    # what it tells of itself

    def raw_outputs(self, images: Images) -> list[Tensor]:
        raw = self.compute(images.pixels, images.sizes).raw
        return [raw[..., :4], raw[..., 4:]]

    def anchor_step(self, raw: YOLOv3Output) -> AnchorStep:
        places = self.places(raw)
        boxes = anchor_boxes(places) - self.shift(raw)[0]
        counts = [rows * columns * len(anchors) for rows, columns, _, anchors, _ in places.maps]
        note = "their shapes are those that k-means found among a data set's objects, the largest on the coarsest map"
        return AnchorStep(list(boxes.split(counts)), self.map_shapes(raw), "anchors", note)

    def map_shapes(self, raw: YOLOv3Output) -> list[MapShape]:
        """Return the maps; they cover the canvas, whose corner lies outside the image."""
        # waits for the device: of a trace, of one image
        left, top = (-side for side in self.shift(raw)[0, 0, :2].tolist())
        maps = self.places(raw).maps
        return [MapShape(rows, columns, high, wide, top, left) for rows, columns, (wide, high), *_ in maps]

    def learned_steps(self, raw: YOLOv3Output, targets: Targets, level: Tensor) -> list[Step]:
        match = self.assign(raw, targets)
        return [anchor_choice(match, targets, self.anchors, self.slots, self.anchor_step(raw), self.config.ignore_iou)]


def shared_out(count: int, scales: int) -> list[list[int]]:
    """Return the numbers of so many anchors for each scale, coarsest first, which has the last; some may have none."""
    return [part.tolist() for part in torch.arange(count, device="cpu").tensor_split(scales)][::-1]
