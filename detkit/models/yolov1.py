"""YOLOv1: You Only Look Once (Redmon et al., CVPR 2016), beside the paper from top to bottom.

Where the paper and the authors' program darknet differ or say nothing, and what detkit does:
- Of two objects whose centres share a cell, one of them at random is that cell's, drawn anew at every visit (darknet).
- Where no box of a cell overlaps its object, the one of least RMSE is responsible (darknet).
- Losses are half of equation 3, averaged over the images, to which the published learning rates belong (darknet).
- Difficult objects are not trained on (`data.difficult: false`, darknet); a cell with such objects only has no loss,
  where in darknet it is background.
- Outputs are linear, so scores may be a little more than 1; a negative confidence or class score counts as 0, lest the
  product of two be a detection.
- Convolutions have batch norm where the backbone has: not in the paper's network (`darknet_yolov1_plain`), but in
  darknet's configurations since 2016 (`darknet_yolov1`).
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from detkit.backbones import create_backbone
from detkit.backbones.darknet import SLOPE, LocallyConnected, convolution
from detkit.config import BackboneConfig, one_of, within
from detkit.errors import UserError
from detkit.models.base import Paper
from detkit.models.dense import DenseConfig, DenseDetector, has_batch_norm
from detkit.models.registry import MODELS
from detkit.models.shape_checks import check_pixels
from detkit.models.trace import GridStep, ResponsibleStep, Step, Trace
from detkit.ops import Cells, assign_cells, decode_cells, responsible_boxes, yolo_loss
from detkit.structures import Images, InputSpec, Predictions, Targets

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # darknet's networks see RGB / 255
CELLS = 7  # a side, in the paper
LOCAL_KERNEL = 3
START = 0.5  # what boxes are predicted at first: the cell's centre, a quarter of the image


@dataclass
class YOLOv1Config(DenseConfig):
    """The defaults are YOLO for VOC (sections 2.1 and 2.2)."""

    name: str = "yolov1"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("darknet_yolov1"))
    size: int = within("[1, 10000]", 448)
    """Side of the stretched input, pixels."""
    mean: tuple[float, float, float] | None = None
    """Of the input's channels, RGB, in units of 255; null: 0 for darknet's backbones, else ImageNet's."""
    std: tuple[float, float, float] | None = within("(0, inf)", None)
    """Of the input's channels, RGB, in units of 255; null: 1 for darknet's backbones, else ImageNet's."""
    feature: str | None = None
    """The backbone's map; null: the last."""
    convolutions: list[list[int]] | None = None
    """Of the head, each [channels, kernel, stride]; null: as `published_convolutions`."""
    batch_norm: bool | None = None
    """Whether these have batch norm; null: if the backbone has."""
    head: str = "fc"
    """`fc`: fully connected layers; `conv`: a 1x1 convolution."""
    local: int = within("[0, 100000]", 0)
    """Channels of a locally connected 3x3 layer in front of the fully connected ones; 0: none."""
    bottleneck: int = within("[0, 100000]", 0)
    """Units of a fully connected layer without rectifier in front of the others, as in Fast YOLO; 0: none."""
    hidden: list[int] = within("[1, 100000]", [4096])
    """Units of the fully connected layers with rectifier, in front of the last."""
    dropout: float = within("[0, 1)", 0.5)
    """Before the last fully connected layer."""
    grid: int | None = within("[1, 1000]", None)
    """Cells a side, S; null: the side of the head's last map, which `conv` always has."""
    boxes: int = within("[1, 1000]", 2)
    """Boxes of a cell, B."""
    coord: float = within("[0, inf)", 5.0)
    """Weight of the box errors in the loss, lambda_coord."""
    noobj: float = within("[0, inf)", 0.5)
    """Weight of the confidence of boxes without an object, lambda_noobj."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model.head", self.head, ("fc", "conv"))
        for spec in self.convolutions or []:
            if len(spec) != 3 or min(spec) < 1 or spec[1] % 2 == 0:
                raise UserError(f"model.convolutions: {spec} is not [channels, odd kernel, stride]")


def published_convolutions(side: int) -> list[list[int]]:
    """Return the head's four convolutions for a backbone's map of `side` cells (section 2.1, figure 3).

    The paper's has 14, which the second one halves to 7; from larger maps others halve too, first the first.
    """
    strides = [1, 1, 1, 1]
    for number in (1, 0, 2, 3):
        if side >= 2 * CELLS:
            strides[number], side = 2, (side + 1) // 2
    return [[1024, 3, stride] for stride in strides]


class FullyConnectedHead(nn.Sequential):
    """Fully connected layers on the whole map (2.1): the last gives class scores, confidences, boxes, as darknet's."""

    def __init__(self, channels: int, side: int, outputs: int, config: YOLOv1Config) -> None:
        super().__init__()
        if config.local:
            self.append(LocallyConnected(channels, config.local, LOCAL_KERNEL, (side, side)))
            self.append(nn.LeakyReLU(SLOPE, inplace=True))
            channels = config.local
        self.append(nn.Flatten())
        inputs = channels * side * side
        if config.bottleneck:
            self.append(connected(inputs, config.bottleneck, slope=1))
            inputs = config.bottleneck
        for units in config.hidden:
            self.extend((connected(inputs, units, SLOPE), nn.LeakyReLU(SLOPE, inplace=True)))
            inputs = units
        self.append(nn.Dropout(config.dropout))
        self.last = nn.Linear(inputs, outputs)


def connected(inputs: int, outputs: int, slope: float) -> nn.Linear:
    """A fully connected layer before a rectifier of this slope."""
    layer = nn.Linear(inputs, outputs)
    nn.init.kaiming_normal_(layer.weight, slope)
    nn.init.zeros_(layer.bias)
    return layer


@MODELS.register("yolov1")
class YOLOv1(DenseDetector):
    """Backbone, four convolutions, and a fully connected or convolutional output for S x S cells."""

    config_type = YOLOv1Config
    paper = Paper("You Only Look Once: Unified, Real-Time Object Detection", 2016)
    class_layers = ("head.",)

    def __init__(self, config: YOLOv1Config, classes: tuple[str, ...]) -> None:
        backbone = create_backbone(config.backbone)
        mean, std = UNIT if backbone.darknet else IMAGENET
        spec = InputSpec((config.size, config.size), config.mean or mean, config.std or std)
        super().__init__(config, classes, spec)
        c = self.config = config
        self.backbone = backbone

        # 2.1 network design
        (info,) = self.choose_maps(None if c.feature is None else [c.feature], "feature")[-1:]
        self.feature = info.name
        backbone.truncate(self.feature)
        check_pixels(backbone, "size", c.size)
        self.freeze_layers(c.freeze_stages, c.freeze_norms)
        batch_norm = has_batch_norm(backbone) if c.batch_norm is None else c.batch_norm
        channels = info.channels
        self.convolutions = nn.Sequential()
        layers = published_convolutions(self.dry_run()[0]) if c.convolutions is None else c.convolutions
        for outputs, kernel, stride in layers:
            self.convolutions.append(convolution(channels, outputs, kernel, stride, batch_norm))
            channels = outputs
        (side,) = self.dry_run()
        self.single_cell_norm = batch_norm and len(self.convolutions) > 0 and side == 1

        # 2 unified detection: in each cell B boxes with a confidence, and C class scores
        self.grid = c.grid or side
        self.parts = (len(classes), c.boxes, c.boxes * 4)
        if c.head == "fc":
            self.head = FullyConnectedHead(channels, side, self.grid**2 * sum(self.parts), c)
            last = self.head.last
        elif self.grid == side:
            self.head = last = nn.Conv2d(channels, sum(self.parts), 1)
        else:
            raise UserError(
                f"model.grid: {c.grid}, but the convolutions lead to a map of {side} x {side}; "
                "change model.size or model.convolutions, or take model.head=fc"
            )
        self.initialise(last)

    @torch.no_grad()
    def initialise(self, last: nn.Linear | nn.Conv2d) -> None:
        """Let the output begin near: nothing there, of no class, and boxes of START, which overlap what is there."""
        nn.init.normal_(last.weight, std=0.1 / math.sqrt(last.weight[0].numel()))
        assert last.bias is not None
        count = len(last.bias) * self.parts[2] // sum(self.parts)
        last.bias.zero_()
        last.bias[-count:] = START

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        return [self.convolutions(self.backbone(pixels)[self.feature])]

    def network(self, pixels: Tensor) -> Cells:
        """Normalised images -> raw outputs for each cell."""
        (x,) = self.feature_maps(pixels)
        x = self.head(x)
        batch, cells = x.shape[0], self.grid**2
        if x.ndim == 4:
            parts = x.permute(0, 2, 3, 1).split(self.parts, -1)
        else:
            parts = x.split([cells * part for part in self.parts], -1)
        classes, confidence, boxes = (part.reshape(batch, cells, -1) for part in parts)
        return Cells(boxes.unflatten(-1, (-1, 4)), confidence, classes)

    def assign(self, raw: Cells, targets: Targets) -> Tensor:
        """2: which object each cell answers for; of several in a cell one at random, drawn anew at every visit."""
        priority = torch.rand(targets.labels.shape, device=targets.labels.device)
        return assign_cells(targets.boxes, targets.valid, targets.ignore, self.grid, self.input.size, priority)

    def loss(self, raw: Cells, assignment: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The five terms of the loss (2.2, equation 3)."""
        weights = (self.config.coord, self.config.noobj)
        return yolo_loss(raw, assignment, targets.boxes, targets.labels, self.input.size, *weights)

    def decode(self, raw: Cells) -> Predictions:
        """Boxes of all cells; a box's score for a class is its confidence times the cell's class score (equation 1)."""
        confidence, classes = raw.confidence.float().clamp(min=0), raw.classes.float().clamp(min=0)
        scores = confidence.unsqueeze(-1) * classes.unsqueeze(2)
        return Predictions(decode_cells(raw.boxes, self.input.size).flatten(1, 2), scores.flatten(1, 2))

    def trace(self, images: Images, targets: Targets | None = None) -> Trace:
        cells = self.network(self.normalise(images.pixels))
        boxes = decode_cells(cells.boxes[0], self.input.size)
        confidence, classes = (part[0].float().clamp(min=0) for part in (cells.confidence, cells.classes))
        steps: list[Step] = [GridStep(self.grid, boxes, confidence, classes)]
        if targets is not None:
            matched = assign_cells(targets.boxes, targets.valid, targets.ignore, self.grid, self.input.size)
            responsible, iou = responsible_boxes(cells, matched, targets.boxes, self.input.size)
            steps.append(ResponsibleStep(self.grid, boxes, matched[0], responsible[0], iou[0]))
        return Trace(self.decode(cells), steps)
