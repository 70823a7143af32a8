"""torchvision's SSD as a detector of detkit: the peer, trained and scored by the same path on the same data.

Network head, default boxes, matching, mining and loss are torchvision's; the backbone, loader, optimiser,
post-processing and evaluation are detkit's. So two runs of one recipe compare the detectors and nothing else.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

from detkit.backbones import Backbone, create_backbone
from detkit.config import BackboneConfig, within
from detkit.errors import UserError
from detkit.models.base import Flops, Paper
from detkit.models.dense import DenseConfig, DenseDetector
from detkit.models.parts import ExportPart
from detkit.models.registry import MODELS
from detkit.models.shape_checks import check_pixels
from detkit.models.ssd import extra_layer
from detkit.structures import Images, InputSpec, Predictions, Targets

# the added layers of torchvision's ssd300, as `model.extras` of detkit's SSD
EXTRAS = ([256, 512, 3, 2, 1], [128, 256, 3, 2, 1], [128, 256, 3, 1, 0], [128, 256, 3, 1, 0])
MAPS = 6


@dataclass
class TorchvisionSSDConfig(DenseConfig):
    """The six maps are the backbone's of stride 8 and up, then added layers."""

    name: str = "torchvision_ssd"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    size: int = within("[1, 10000]", 300)
    """Side of the stretched input, pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the input's channels, RGB, in units of 255."""
    std: tuple[float, float, float] = within("(0, inf)", (0.229, 0.224, 0.225))
    """Of the input's channels, RGB, in units of 255."""


class Raw(NamedTuple):
    """outputs: of torchvision's head. anchors: the default boxes (A, 4) of each image."""

    outputs: dict[str, Tensor]
    anchors: list[Tensor]


class Pyramid(nn.Module):
    """The backbone's maps and the added layers, initialised as torchvision's own, in the form that its SSD reads."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        used = [info for info in backbone.info if info.stride >= 8]
        self.names = [info.name for info in used]
        self.out_channels = [info.channels for info in used]
        self.extras = nn.ModuleList()
        if not MAPS - len(EXTRAS) <= len(used) <= MAPS:
            raise UserError(
                f"model.backbone: torchvision's SSD wants {MAPS - len(EXTRAS)} to {MAPS} maps of stride 8 and up, and "
                f"{type(backbone).__name__} gives {len(used)}"
            )
        for spec in EXTRAS[: MAPS - len(used)]:
            self.extras.append(extra_layer(self.out_channels[-1], spec, batch_norm=False))
            self.out_channels.append(spec[1])
        for layer in self.extras.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        features = self.backbone(x)
        maps = OrderedDict((name, features[name]) for name in self.names)
        last = features[self.names[-1]]
        for number, layer in enumerate(self.extras):
            maps[f"extra{number}"] = last = layer(last)
        return maps


@MODELS.register("torchvision_ssd")
class TorchvisionSSD(DenseDetector):
    """Loops over images, as torchvision does, and so is no network that could be exported."""

    config_type = TorchvisionSSDConfig
    paper = Paper("SSD: Single Shot MultiBox Detector", 2016)
    class_layers = ("ssd.head.",)

    def __init__(self, config: TorchvisionSSDConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config, classes, InputSpec((config.size, config.size), config.mean, config.std))
        backbone = create_backbone(config.backbone)
        pyramid = Pyramid(backbone)
        check_pixels(backbone, "size", config.size, pyramid)
        ratios = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
        self.ssd = SSD(pyramid, DefaultBoxGenerator(ratios), self.input.size, num_classes=len(classes) + 1)
        self.freeze_layers(config.freeze_stages, config.freeze_norms)

    @property
    def backbone(self) -> Backbone:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.ssd.backbone.backbone  # pyright: ignore[reportReturnType]

    def feature_maps(self, pixels: Tensor) -> list[Tensor]:
        return list(self.ssd.backbone(pixels).values())

    def network(self, pixels: Tensor) -> Raw:
        features = self.feature_maps(pixels)
        sizes = [self.input.size] * len(pixels)
        return Raw(self.ssd.head(features), self.ssd.anchor_generator(ImageList(pixels, sizes), features))

    def assign(self, raw: Raw, targets: Targets) -> list[Tensor]:
        """Return the object of each default box, (A,), for each image."""
        matched = []
        for ground_truth, boxes in zip(ragged(targets), raw.anchors):
            if len(ground_truth["boxes"]):
                matched.append(self.ssd.proposal_matcher(box_iou(ground_truth["boxes"], boxes)))
            else:
                matched.append(ground_truth["labels"].new_full((len(boxes),), -1))
        return matched

    def loss(self, raw: Raw, assignment: list[Tensor], targets: Targets) -> dict[str, Tensor]:
        losses = self.ssd.compute_loss(ragged(targets), raw.outputs, raw.anchors, assignment)
        return {"classification": losses["classification"], "box": losses["bbox_regression"]}

    def decode(self, raw: Raw) -> Predictions:
        scores = raw.outputs["cls_logits"].float().softmax(-1)[..., 1:]
        boxes = [
            self.ssd.box_coder.decode_single(deltas.float(), anchors)
            for deltas, anchors in zip(raw.outputs["bbox_regression"], raw.anchors)
        ]
        return Predictions(torch.stack(boxes), scores)

    def raw_outputs(self, images: Images) -> list[Tensor]:
        # without torchvision's default boxes, which stay on the CPU
        maps = self.feature_maps(self.normalise(images.pixels, images.sizes))
        return list(self.ssd.head(maps).values())

    def flops(self, height: int, width: int) -> Flops | None:
        return None

    def export_parts(self) -> dict[str, ExportPart]:
        raise UserError("it loops over images, as torchvision does")


def ragged(targets: Targets) -> list[dict[str, Tensor]]:
    """Return targets as torchvision wants them: a list of images, with background as class 0."""
    used = targets.valid & ~targets.ignore
    return [
        {"boxes": boxes[keep], "labels": labels[keep] + 1}
        for boxes, labels, keep in zip(targets.boxes, targets.labels, used)
    ]
