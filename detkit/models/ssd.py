"""SSD: Single Shot MultiBox Detector (Liu et al., ECCV 2016), beside the paper from top to bottom.

Where the paper and its Caffe code differ, and what detkit does:
- conv4_3 is L2-normalised with a learned scale from 20 (paper section 3.1; ParseNet); other backbones need none.
- Matching is the code's true bipartite step: two objects never share the one default box that each is owed.
- An image without matched boxes has no negatives either (3 x 0), as in both.
- Difficult objects are trained on, as in the code (`data.difficult`).
- Decoded boxes are clipped before NMS, as in Faster R-CNN and torchvision; Caffe's SSD clips after it.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from detkit.backbones import FeatureInfo, create_backbone
from detkit.config import BackboneConfig, within
from detkit.errors import UserError
from detkit.models.base import Paper
from detkit.models.dense import DenseConfig, DenseDetector, has_batch_norm
from detkit.models.registry import MODELS
from detkit.models.shape_checks import check_pixels
from detkit.models.trace import AnchorStep, MapShape, SampleStep
from detkit.ops import BoxCoder, Match, default_boxes, hard_negatives, match_ssd, multibox_loss
from detkit.structures import InputSpec, Predictions, Targets

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))  # one over the code's variances .1, .1, .2, .2


@dataclass
class SSDConfig(DenseConfig):
    """The defaults are SSD300 for VOC (section 3, and the authors' code); null follows the paper for any backbone."""

    name: str = "ssd"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("vgg16_reduced"))
    size: int = within("[1, 10000]", 300)
    """Side of the stretched input, pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the input's channels, RGB, in units of 255."""
    std: tuple[float, float, float] = within("(0, inf)", (0.229, 0.224, 0.225))
    """Of the input's channels, RGB, in units of 255."""
    features: list[str] | None = None
    """The backbone's maps that are used; null: all of stride 8 and up."""
    l2norm: list[str] | None = None
    """Those maps that are L2-normalised; null: those that the backbone says need it (VGG's conv4_3)."""
    extras: list[list[int]] | None = None
    """Added layers, each [channels of the 1x1, channels, kernel, stride, padding]; null: as `published_extras`."""
    batch_norm: bool | None = None
    """Whether the added layers have batch norm; null: if the backbone has."""
    lite: bool = False
    """Whether the convolutions of the added layers and the predictors are separable: SSDLite (Sandler et al., 2018,
    section 6.2)."""
    min_sizes: list[float] | None = within("(0, inf)", None)
    """Smaller square of each map, pixels; null: as `published_sizes`."""
    max_sizes: list[float] | None = within("(0, inf)", None)
    """The larger square of a map has side sqrt(min_size * max_size), pixels; null: as `published_sizes`."""
    aspect_ratios: list[list[float]] | None = within("(0, inf)", None)
    """Of each map, beside 1; null: 2 and 3, but only 2 on the first map and the last two."""
    steps: list[float] | None = within("(0, inf)", None)
    """Pixels between the default boxes of each map; null: as `published_steps`."""
    match_iou: float = within("[0, 1]", 0.5)
    """IoU from which a default box is matched to an object."""
    neg_pos_ratio: float = within("[0, inf)", 3.0)
    """Hard negatives of an image for each of its positives, at most."""


def published_extras(side: int) -> list[list[int]]:
    """Return the added layers for a last backbone map of `side` cells, which lead to a single cell.

    Those of SSD300 (side 19) and SSD512 (side 32): stride 2 while that leaves more than a few cells, then unpadded.
    """
    layers: list[list[int]] = []
    while side > 1:
        if side in (3, 5):
            kernel, stride, padding = 3, 1, 0
        elif side == 2:
            kernel, stride, padding = 4, 1, 1
        else:
            kernel, stride, padding = 3, 2, 1
        layers.append([*((128, 256) if layers else (256, 512)), kernel, stride, padding])
        side = (side + 2 * padding - kernel) // stride + 1
    return layers


def published_sizes(size: int, maps: int) -> tuple[list[float], list[float]]:
    """Return min_sizes and max_sizes: .1 of the image on the first map, .2 to .9 evenly on the others (section 2.2).

    In whole percents as the authors' code, so that SSD300 has 30, 60, 111, 162, 213, 264 and at last 315.
    """
    step = 70 // max(maps - 2, 1)
    percents = [10, *(20 + step * number for number in range(maps))]
    sides = [size * percent / 100 for percent in percents]
    return sides[:maps], sides[1 : maps + 1]


def published_steps(size: int, strides: list[int], sides: list[int]) -> list[float]:
    """Return pixels between default boxes: a map's stride, but size / side where its cells would not fit the image.

    strides: input pixels that a layer moves by for one cell. So the authors have 8, 16, 32, 64, then 100 and 300.
    """
    return [
        float(stride) if abs(stride * side - size) <= size / 10 else size / side for stride, side in zip(strides, sides)
    ]


def default_box_layout(config: SSDConfig, strides: list[int], sides: list[int]) -> dict[str, list]:
    """Return steps, min_sizes, max_sizes and aspect_ratios, one entry a map, as `default_boxes` takes them.

    strides: of the maps; sides: their cells a side. UserError where the config has another number of entries.
    """
    count = len(sides)
    min_sizes, max_sizes = published_sizes(config.size, count)
    ratios = [[2.0] if number in (0, count - 2, count - 1) else [2.0, 3.0] for number in range(count)]
    layout = {
        "steps": config.steps or published_steps(config.size, strides, sides),
        "min_sizes": config.min_sizes or min_sizes,
        "max_sizes": config.max_sizes or max_sizes,
        "aspect_ratios": config.aspect_ratios or ratios,
    }
    for key, values in layout.items():
        if len(values) != count:
            raise UserError(f"model.{key}: {len(values)} entries for {count} feature maps, of {sides} cells a side")
    return layout


class L2Norm(nn.Module):
    """Scale each position's feature vector to length `scale`, learned per channel (section 3.1)."""

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        # 512 squares overflow half precision
        norm = x.float().square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
        return x * (self.weight.view(-1, 1, 1) / norm).to(x.dtype)


def separable(
    inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True
) -> nn.Module:
    """Return what SSDLite has for a convolution: one of each channel, batch norm, ReLU6, and a 1x1 convolution."""
    depthwise = nn.Conv2d(inputs, inputs, kernel, stride, padding, groups=inputs, bias=False)
    return nn.Sequential(
        depthwise, nn.BatchNorm2d(inputs), nn.ReLU6(inplace=True), nn.Conv2d(inputs, outputs, 1, bias=bias)
    )


def extra_layer(inputs: int, spec: list[int], batch_norm: bool, lite: bool = False) -> nn.Sequential:
    """One added feature layer: 1x1 convolution to fewer channels, then a kernel that makes the map smaller."""
    middle, outputs, kernel, stride, padding = spec
    reduce = nn.Conv2d(inputs, middle, 1, bias=not batch_norm)
    convolution = separable if lite else nn.Conv2d
    shrink = convolution(middle, outputs, kernel, stride, padding, bias=not batch_norm)
    first, second = [[nn.BatchNorm2d(size)] if batch_norm else [] for size in (middle, outputs)]
    return nn.Sequential(reduce, *first, nn.ReLU(inplace=True), shrink, *second, nn.ReLU(inplace=True))


class SSDHead(nn.Module):
    """On each map a 3x3 classifier and a 3x3 box regressor (section 2.1).

    channels: of each map; boxes: default boxes of a cell of each map; classes: without background; lite: see SSDConfig.
    """

    def __init__(self, channels: list[int], boxes: list[int], classes: int, lite: bool = False) -> None:
        super().__init__()
        self.columns = classes + 1
        shapes = list(zip(channels, boxes))
        convolution = separable if lite else nn.Conv2d
        self.classifiers = nn.ModuleList(
            convolution(size, count * self.columns, 3, padding=1) for size, count in shapes
        )
        self.regressors = nn.ModuleList(convolution(size, count * 4, 3, padding=1) for size, count in shapes)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps -> logits (B, A, classes + 1), background last, and deltas (B, A, 4), in the default boxes' order."""
        logits = [by_box(layer(x), self.columns) for layer, x in zip(self.classifiers, maps)]
        deltas = [by_box(layer(x), 4) for layer, x in zip(self.regressors, maps)]
        return torch.cat(logits, 1), torch.cat(deltas, 1)


@MODELS.register("ssd")
class SSD(DenseDetector):
    """Backbone, extra feature layers, and a head on each map (section 2.1)."""

    config_type = SSDConfig
    paper = Paper("SSD: Single Shot MultiBox Detector", 2016)
    class_layers = ("head.",)
    assigns_before_network = True
    anchors: Tensor

    def __init__(self, config: SSDConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config, classes, InputSpec((config.size, config.size), config.mean, config.std))
        self.backbone = create_backbone(config.backbone)
        check_pixels(self.backbone, "size", config.size)
        self.freeze_layers(config.freeze_stages, config.freeze_norms)

        # 2.1 multi-scale feature maps
        maps = self.choose_maps(config.features, "features", min_stride=8)
        self.features = [info.name for info in maps]
        normed = config.l2norm
        if normed is None:
            normed = [name for name in self.features if name in self.backbone.l2norm_features]
        channels = {info.name: info.channels for info in maps}
        for name in normed:
            if name not in channels:
                raise UserError(f"model.l2norm: {name!r} is not one of the maps {', '.join(channels)}")
        self.l2norm = nn.ModuleDict({name: L2Norm(channels[name]) for name in normed})
        self.extras = nn.ModuleList()
        batch_norm = has_batch_norm(self.backbone) if config.batch_norm is None else config.batch_norm
        maps += self.add_extras(config, maps[-1], batch_norm)
        self.sides = self.dry_run()
        self.single_cell_norm = ((batch_norm and len(self.extras) > 0) or config.lite) and self.sides[-1] == 1

        # 2.2 default boxes
        layout = default_box_layout(config, [info.stride for info in maps], self.sides)
        boxes = default_boxes([(side, side) for side in self.sides], **layout)
        self.register_buffer("anchors", boxes, persistent=False)

        # 2.1 convolutional predictors
        self.boxes_per_cell = [2 + 2 * len(ratios) for ratios in layout["aspect_ratios"]]
        self.head = SSDHead([info.channels for info in maps], self.boxes_per_cell, len(classes), config.lite)
        initialise(self.extras)
        initialise(self.head)

    def add_extras(self, config: SSDConfig, last: FeatureInfo, batch_norm: bool) -> list[FeatureInfo]:
        """Append the added layers behind the map `last`; return what they give."""
        side = self.dry_run()[-1]
        added: list[FeatureInfo] = []
        for spec in published_extras(side) if config.extras is None else config.extras:
            if len(spec) != 5:
                raise UserError(f"model.extras: {spec} is not [1x1 channels, channels, kernel, stride, padding]")
            _, channels, kernel, stride, padding = spec
            if side + 2 * padding < kernel:
                raise UserError(
                    f"model.extras: a map of {side} cells a side is too small for {spec}, "
                    "[1x1 channels, channels, kernel, stride, padding]"
                )
            side = (side + 2 * padding - kernel) // stride + 1
            self.extras.append(extra_layer(last.channels, spec, batch_norm, config.lite))
            last = FeatureInfo(f"extra{len(self.extras)}", channels, last.stride * stride)
            added.append(last)
        return added

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        features = self.backbone(pixels)
        x = features[self.features[-1]]
        maps = [self.l2norm[name](features[name]) if name in self.l2norm else features[name] for name in self.features]
        for layer in self.extras:
            x = layer(x)
            maps.append(x)
        return maps

    def network(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images -> logits (B, A, C + 1), background last, and deltas (B, A, 4), in the anchors' order."""
        return self.head(self.feature_maps(pixels))

    def assign(self, raw: None, targets: Targets) -> Match:
        """2.2 matching: which object each default box learns."""
        return match_ssd(targets.boxes, targets.valid, targets.ignore, self.anchors, self.config.match_iou)

    def loss(self, raw: tuple[Tensor, Tensor], assignment: Match, targets: Targets) -> dict[str, Tensor]:
        """2.2: hard negative mining and the multibox loss, equation 1, with alpha = 1."""
        objects = (targets.boxes, targets.labels)
        return multibox_loss(*raw, assignment, *objects, self.anchors, CODER, ratio=self.config.neg_pos_ratio)

    def decode(self, raw: tuple[Tensor, Tensor]) -> Predictions:
        logits, deltas = raw
        scores = logits.float().softmax(-1)[..., :-1]
        return Predictions(CODER.decode(deltas.float(), self.anchors), scores)

    def anchor_step(self, raw: Any) -> AnchorStep:
        size = self.input.size[0]
        maps = [MapShape(side, side, size / side, size / side) for side in self.sides]
        counts = [side**2 * boxes for side, boxes in zip(self.sides, self.boxes_per_cell)]
        note = "small boxes on fine maps, large ones on coarse"
        return AnchorStep(list(self.anchors.split(counts)), maps, "default boxes", note)

    def sample_step(self, raw: tuple[Tensor, Tensor], targets: Targets, level: Tensor) -> SampleStep:
        """The matched default boxes and the hard negatives of one image."""
        match = self.assign(None, targets)
        _, negative = hard_negatives(raw[0], match, targets.labels, self.config.neg_pos_ratio)
        chosen = (match.index[0] >= 0) | negative[0]
        return SampleStep(
            self.anchors[chosen],
            match.index[0][chosen],
            level=level[chosen],
            name="matching",
            title="Matches to the objects (training)",
            text="What training would learn from this image: each object gets the default box it overlaps most, and "
            "all that overlap it enough ({levels}). Of the others the {negative} hardest are negatives: background "
            "that the network, as it is now, is least sure of.",
            captions=("matched", "hard negatives"),
            legend=("matched to", "hard negative"),
        )


def by_box(x: Tensor, columns: int) -> Tensor:
    """(B, boxes * columns, H, W) -> (B, H * W * boxes, columns): cells row by row, then the boxes of a cell."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns)


def initialise(module: nn.Module) -> None:
    """Xavier's uniform weights over fan in, as Caffe has them, and zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
