"""A dense detector of one's own: one map, two boxes in each cell."""

from dataclasses import dataclass, field

from torch import Tensor, nn

from detkit.backbones import create_backbone
from detkit.config import BackboneConfig
from detkit.models import MODELS, DenseDetector
from detkit.models.trace import AnchorStep, MapShape
from detkit.ops import BoxCoder, Match, default_boxes, match_ssd, multibox_loss
from detkit.structures import InputSpec, Predictions, Targets

Raw = tuple[Tensor, Tensor]  # logits (B, A, C + 1), background last, and deltas (B, A, 4)
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


@dataclass
class DotsConfig:
    name: str = "dots"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("tiny"))
    size: int = 128
    """Side of the stretched input, pixels."""


@MODELS.register("dots")
class Dots(DenseDetector):
    config_type = DotsConfig
    class_layers = ("head.",)
    anchors: Tensor

    def __init__(self, config: DotsConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config, classes, InputSpec((config.size, config.size)))
        self.backbone = create_backbone(config.backbone)
        self.map, channels, stride = self.backbone.info[0]
        self.backbone.truncate(self.map)
        side = config.size // stride
        self.shape = MapShape(side, side, stride, stride)
        boxes = default_boxes([(side, side)], [stride], [32.0], [64.0], [[]])
        self.register_buffer("anchors", boxes, persistent=False)
        self.head = nn.Conv2d(channels, 2 * (len(classes) + 1 + 4), 3, padding=1)

    def network(self, pixels: Tensor) -> Raw:
        x = self.head(self.backbone(pixels)[self.map]).permute(0, 2, 3, 1)
        x = x.reshape(len(x), len(self.anchors), -1)
        return x[..., :-4], x[..., -4:]

    def assign(self, raw: Raw, targets: Targets) -> Match:
        return match_ssd(targets.boxes, targets.valid, targets.ignore, self.anchors, 0.5)

    def loss(self, raw: Raw, assignment: Match, targets: Targets) -> dict[str, Tensor]:
        objects = (targets.boxes, targets.labels)
        return multibox_loss(*raw, assignment, *objects, self.anchors, CODER, ratio=3.0)

    def decode(self, raw: Raw) -> Predictions:
        logits, deltas = raw
        return Predictions(CODER.decode(deltas.float(), self.anchors), logits.float().softmax(-1)[..., :-1])

    def anchor_step(self, raw: Raw) -> AnchorStep:
        return AnchorStep([self.anchors], [self.shape], "default boxes", "squares of 32 and 45 pixels")
