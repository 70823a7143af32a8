"""SSD: Single Shot MultiBox Detector (Liu et al., ECCV 2016), beside the paper from top to bottom.

Where the paper and its Caffe code differ, and what detkit does:
- conv4_3 is L2-normalised with a learned scale from 20 (paper section 3.1; ParseNet); other backbones need none.
- Matching is the code's true bipartite step: two objects never share the one default box that each is owed.
- An image without matched boxes has no negatives either (3 x 0), as in both.
- Difficult objects are trained on, as in the code (`data.difficult`).
- Decoded boxes are clipped before NMS, as in Faster R-CNN and torchvision; Caffe's SSD clips after it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from detkit.backbones import create_backbone
from detkit.config import BackboneConfig
from detkit.errors import UserError
from detkit.models.base import Detector, Paper
from detkit.models.registry import MODELS
from detkit.models.shape_checks import check_pixels
from detkit.ops import BoxCoder, Match, default_boxes, match_ssd, multibox_loss
from detkit.structures import Images, InputSpec, Predictions, Targets

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))  # one over the code's variances .1, .1, .2, .2


@dataclass
class SSDConfig:
    """The defaults are SSD300 for VOC (section 3, and the authors' code); null follows the paper for any backbone.

    size: side of the stretched input, pixels. features: the backbone's maps that are used, null = stride 8 and up.
    l2norm: those maps that are L2-normalised, null = those that the backbone says need it (VGG's conv4_3).
    extras: added layers, each [channels of the 1x1, channels, kernel, stride, padding], null = as `published_extras`;
    batch_norm: whether these have batch norm, null = if the backbone has.
    min_sizes, max_sizes: pixels, one a map, null = as `published_sizes`. aspect_ratios: beside 1, one list a map, null
    = 2 and 3, but only 2 on the first map and the last two. steps: pixels between default boxes, null = as
    `published_steps`. overlap: IoU from which a default box is matched. negatives: for each positive, most negatives
    an image.
    """

    name: str = "ssd"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("vgg16_reduced"))
    size: int = 300
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    features: list[str] | None = None
    l2norm: list[str] | None = None
    extras: list[list[int]] | None = None
    batch_norm: bool | None = None
    min_sizes: list[float] | None = None
    max_sizes: list[float] | None = None
    aspect_ratios: list[list[float]] | None = None
    steps: list[float] | None = None
    match_iou: float = 0.5
    neg_pos_ratio: float = 3.0


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


class L2Norm(nn.Module):
    """Scale each position's feature vector to length `scale`, learned per channel (section 3.1)."""

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        # 512 squares overflow half precision
        norm = x.float().square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)
        return x * (self.weight.view(-1, 1, 1) / norm).to(x.dtype)


def extra_layer(inputs: int, spec: list[int], batch_norm: bool) -> nn.Sequential:
    """One added feature layer: 1x1 convolution to fewer channels, then a kernel that makes the map smaller."""
    middle, outputs, kernel, stride, padding = spec
    reduce = nn.Conv2d(inputs, middle, 1, bias=not batch_norm)
    shrink = nn.Conv2d(middle, outputs, kernel, stride, padding, bias=not batch_norm)
    first, second = [[nn.BatchNorm2d(size)] if batch_norm else [] for size in (middle, outputs)]
    return nn.Sequential(reduce, *first, nn.ReLU(inplace=True), shrink, *second, nn.ReLU(inplace=True))


@MODELS.register("ssd")
class SSD(Detector):
    """Backbone, extra feature layers, and on each map a 3x3 classifier and a 3x3 box regressor (section 2.1)."""

    config_type = SSDConfig
    paper = Paper("SSD: Single Shot MultiBox Detector", 2016)
    class_layers = ("classifiers.", "regressors.")
    anchors: Tensor

    def __init__(self, config: SSDConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config, classes, InputSpec((config.size, config.size), config.mean, config.std))
        self.match_iou, self.neg_pos_ratio = config.match_iou, config.neg_pos_ratio
        self.backbone = create_backbone(config.backbone)
        check_pixels(self.backbone, "size", config.size)

        # 2.1 multi-scale feature maps
        known = {info.name: info for info in self.backbone.info}
        self.features = config.features or [info.name for info in self.backbone.info if info.stride >= 8]
        normed = config.l2norm
        if normed is None:
            normed = [name for name in self.features if name in self.backbone.l2norm_features]
        for name in [*self.features, *normed]:
            if name not in self.features or name not in known:
                raise UserError(f"model: {config.backbone.name} gives the maps {', '.join(known)}, not {name!r}")
        self.l2norm = nn.ModuleDict({name: L2Norm(known[name].channels) for name in normed})
        self.extras = nn.ModuleList()
        side = self.map_sides()[-1]
        extras = published_extras(side) if config.extras is None else config.extras
        batch_norm = config.batch_norm
        if batch_norm is None:
            batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in self.backbone.modules())
        channels, strides = ([getattr(known[name], key) for name in self.features] for key in ("channels", "stride"))
        for spec in extras:
            if len(spec) != 5:
                raise UserError(f"model.extras: {spec} is not [1x1 channels, channels, kernel, stride, padding]")
            if side + 2 * spec[4] < spec[2]:
                raise UserError(
                    f"model.extras: a map of {side} cells a side is too small for {spec}, "
                    "[1x1 channels, channels, kernel, stride, padding]"
                )
            side = (side + 2 * spec[4] - spec[2]) // spec[3] + 1
            self.extras.append(extra_layer(channels[-1], spec, batch_norm))
            channels.append(spec[1])
            strides.append(strides[-1] * spec[3])
        sides = self.map_sides()
        self.single_cell_norm = batch_norm and len(extras) > 0 and sides[-1] == 1

        # 2.2 default boxes
        count = len(sides)
        smallest, largest = published_sizes(config.size, count)
        layout = {
            "steps": config.steps or published_steps(config.size, strides, sides),
            "min_sizes": config.min_sizes or smallest,
            "max_sizes": config.max_sizes or largest,
            "aspect_ratios": config.aspect_ratios
            or [[2.0] if number in (0, count - 2, count - 1) else [2.0, 3.0] for number in range(count)],
        }
        for key, values in layout.items():
            if len(values) != count:
                raise UserError(
                    f"model.{key}: {len(values)} entries for {count} feature maps "
                    f"({len(self.features)} of the backbone, {len(self.extras)} extras)"
                )
        self.register_buffer("anchors", default_boxes([(side, side) for side in sides], **layout), persistent=False)

        # 2.1 convolutional predictors: one score a class and background, four deltas, for each default box of a cell
        boxes_a_cell = [2 + 2 * len(ratios) for ratios in layout["aspect_ratios"]]
        columns = len(classes) + 1
        self.classifiers = nn.ModuleList(
            nn.Conv2d(size, boxes * columns, 3, padding=1) for size, boxes in zip(channels, boxes_a_cell)
        )
        self.regressors = nn.ModuleList(
            nn.Conv2d(size, boxes * 4, 3, padding=1) for size, boxes in zip(channels, boxes_a_cell)
        )
        for module in (self.extras, self.classifiers, self.regressors):
            initialise(module)

    @torch.no_grad()
    def map_sides(self) -> list[int]:
        """Return the cells along a side of each feature map so far, by a pass through the network."""
        training = self.training
        self.eval()
        maps = self.maps(torch.zeros(1, 3, *self.input.size))
        self.train(training)
        return [x.shape[-1] for x in maps]

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Normalised images (B, 3, H, W) -> feature maps, finest first."""
        features = self.backbone(pixels)
        x = features[self.features[-1]]
        maps = [self.l2norm[name](features[name]) if name in self.l2norm else features[name] for name in self.features]
        for layer in self.extras:
            x = layer(x)
            maps.append(x)
        return maps

    def network(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images -> logits (B, A, C + 1), background last, and deltas (B, A, 4), in the anchors' order."""
        maps = self.maps(pixels)
        columns = len(self.classes) + 1
        logits = [rows(head(x), columns) for head, x in zip(self.classifiers, maps)]
        deltas = [rows(head(x), 4) for head, x in zip(self.regressors, maps)]
        return torch.cat(logits, 1), torch.cat(deltas, 1)

    def match(self, targets: Targets) -> Match:
        """2.2 matching: which object each default box learns."""
        return match_ssd(targets.boxes, targets.valid, targets.ignore, self.anchors, self.match_iou)

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """Matching (2.2), hard negative mining and the multibox loss, equation 1, with alpha = 1."""
        if self.training and self.single_cell_norm and len(images) == 1:
            raise UserError(
                "train.batch: one image a step (of a process and micro-batch) gives the batch norm of the single cell "
                "of the last map nothing to average; take 2 or more, or model.batch_norm=false"
            )
        # before the network: matching waits for a GPU a few times, which is short while nothing is queued there
        match = self.match(targets)
        logits, deltas = self.network(self.normalise(images))
        return multibox_loss(
            logits, deltas, match, targets.boxes, targets.labels, self.anchors, CODER, ratio=self.neg_pos_ratio
        )

    def predict(self, images: Images) -> Predictions:
        logits, deltas = self.network(self.normalise(images))
        scores = logits.float().softmax(-1)[..., :-1]
        return Predictions(CODER.decode(deltas.float(), self.anchors), scores)


def rows(x: Tensor, columns: int) -> Tensor:
    """(B, boxes * columns, H, W) -> (B, H * W * boxes, columns): cells row by row, then the boxes of a cell."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, columns)


def initialise(module: nn.Module) -> None:
    """Xavier's uniform weights and zero biases, as in the authors' code."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
