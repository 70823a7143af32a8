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
from detkit.models.base import Detector
from detkit.models.registry import MODELS
from detkit.ops import BoxCoder, default_boxes, map_steps, match_ssd, multibox_loss
from detkit.structures import Images, InputSpec, Predictions, Targets

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))  # one over the code's variances .1, .1, .2, .2


@dataclass
class SSDConfig:
    """The defaults are SSD300 for VOC (section 3, and the authors' code).

    size: side of the stretched input, pixels. features: the backbone's maps that are used, null = stride 8 and up.
    l2norm: those maps that are L2-normalised. extras: added layers, each [channels of the 1x1, channels, kernel,
    stride, padding]; batch_norm: whether these have batch norm (where the backbone is not VGG).
    min_sizes, max_sizes: pixels, one a map. aspect_ratios: beside 1, one list a map.
    steps: pixels between default boxes, null = size / map's side.
    overlap: IoU from which a default box is matched. negatives: for each positive, most negatives an image.
    """

    name: str = "ssd"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("vgg16_reduced"))
    size: int = 300
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    features: list[str] | None = None
    l2norm: list[str] = field(default_factory=lambda: ["conv4_3"])
    extras: list[list[int]] = field(
        default_factory=lambda: [[256, 512, 3, 2, 1], [128, 256, 3, 2, 1], [128, 256, 3, 1, 0], [128, 256, 3, 1, 0]]
    )
    batch_norm: bool = False
    min_sizes: list[float] = field(default_factory=lambda: [30.0, 60.0, 111.0, 162.0, 213.0, 264.0])
    max_sizes: list[float] = field(default_factory=lambda: [60.0, 111.0, 162.0, 213.0, 264.0, 315.0])
    aspect_ratios: list[list[float]] = field(
        default_factory=lambda: [[2.0], [2.0, 3.0], [2.0, 3.0], [2.0, 3.0], [2.0], [2.0]]
    )
    steps: list[float] | None = field(default_factory=lambda: [8.0, 16.0, 32.0, 64.0, 100.0, 300.0])
    overlap: float = 0.5
    negatives: float = 3.0


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
    anchors: Tensor

    def __init__(self, config: SSDConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config, classes, InputSpec((config.size, config.size), config.mean, config.std))
        self.overlap, self.negatives = config.overlap, config.negatives
        self.backbone = create_backbone(config.backbone)

        # 2.1 multi-scale feature maps
        known = {info.name: info for info in self.backbone.info}
        self.features = config.features or [info.name for info in self.backbone.info if info.stride >= 8]
        for name in [*self.features, *config.l2norm]:
            if name not in self.features or name not in known:
                raise UserError(f"model: {config.backbone.name} gives the maps {', '.join(known)}, not {name!r}")
        channels = [known[name].channels for name in self.features]
        self.l2norm = nn.ModuleDict({name: L2Norm(known[name].channels) for name in config.l2norm})
        self.extras = nn.ModuleList()
        for spec in config.extras:
            if len(spec) != 5:
                raise UserError(f"model.extras: {spec} is not [1x1 channels, channels, kernel, stride, padding]")
            self.extras.append(extra_layer(channels[-1], spec, config.batch_norm))
            channels.append(spec[1])

        # 2.1 convolutional predictors: one score a class and background, four deltas, for each default box of a cell
        for key in ("min_sizes", "max_sizes", "aspect_ratios", "steps"):
            values = getattr(config, key)
            if values is not None and len(values) != len(channels):
                raise UserError(
                    f"model.{key}: {len(values)} entries for {len(channels)} feature maps "
                    f"({len(self.features)} of the backbone, {len(self.extras)} extras)"
                )
        boxes_a_cell = [2 + 2 * len(ratios) for ratios in config.aspect_ratios]
        columns = len(classes) + 1
        self.classifiers = nn.ModuleList(
            nn.Conv2d(size, boxes * columns, 3, padding=1) for size, boxes in zip(channels, boxes_a_cell)
        )
        self.regressors = nn.ModuleList(
            nn.Conv2d(size, boxes * 4, 3, padding=1) for size, boxes in zip(channels, boxes_a_cell)
        )
        for module in (self.extras, self.classifiers, self.regressors):
            initialise(module)

        # 2.2 default boxes
        maps = self.map_sizes()
        anchors = default_boxes(
            maps,
            config.steps or map_steps(self.input.size, maps),
            config.min_sizes,
            config.max_sizes,
            config.aspect_ratios,
        )
        self.register_buffer("anchors", anchors, persistent=False)

    @torch.no_grad()
    def map_sizes(self) -> list[tuple[int, int]]:
        """Return (height, width) of each feature map, by a pass through the network."""
        training = self.training
        self.eval()
        maps = self.maps(torch.zeros(1, 3, *self.input.size))
        self.train(training)
        return [(x.shape[-2], x.shape[-1]) for x in maps]

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

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """Matching (2.2), hard negative mining and the multibox loss, equation 1, with alpha = 1."""
        logits, deltas = self.network(self.normalise(images))
        match = match_ssd(targets.boxes, targets.valid, targets.ignore, self.anchors, self.overlap)
        return multibox_loss(
            logits, deltas, match, targets.boxes, targets.labels, self.anchors, CODER, ratio=self.negatives
        )

    def predict(self, images: Images) -> Predictions:
        logits, deltas = self.network(self.normalise(images))
        scores = logits.float().softmax(-1)[..., :-1]
        return Predictions(CODER.decode(deltas.float(), self.anchors), scores)


def rows(x: Tensor, columns: int) -> Tensor:
    """(B, boxes * columns, H, W) -> (B, H * W * boxes, columns): cells row by row, then the boxes of a cell."""
    return x.permute(0, 2, 3, 1).reshape(len(x), -1, columns)


def initialise(module: nn.Module) -> None:
    """Xavier's uniform weights and zero biases, as in the authors' code."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
