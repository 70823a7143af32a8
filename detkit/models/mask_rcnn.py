"""Mask R-CNN (He et al., ICCV 2017), beside the paper from top to bottom.

It is Faster R-CNN on a feature pyramid with a third branch, which finds a mask of each class for each region. Where the
paper, its code Detectron and torchvision differ, and what detkit does:
- Targets are the objects' masks resampled by RoIAlign (torchvision); Detectron draws their polygons at 28x28.
- The mask of a detection is resampled to its box with a border of zeros (Detectron, torchvision), and is the object
  where it is above .5.
- An object without a mask cannot be learned; crowds, and difficult objects where `data.difficult` is false, are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from detkit.config import within
from detkit.errors import UserError
from detkit.models.base import Paper
from detkit.models.faster_rcnn import FasterRCNN, FasterRCNNConfig
from detkit.models.parts import ExportPart, Function, PartRun, regions_input
from detkit.models.region import SampledRegions
from detkit.models.region_features import MapFeatures
from detkit.models.registry import MODELS
from detkit.models.trace import MaskStep, MaskTargetStep, Step, Trace
from detkit.ops import mask_targets, scale
from detkit.ops.masks import THRESHOLD
from detkit.structures import Detections, Images, Proposals, Targets


@dataclass
class MaskRCNNConfig(FasterRCNNConfig):
    """The defaults are those of Faster R-CNN, and of the paper for the mask branch (section 3, figure 4)."""

    name: str = "mask_rcnn"
    neck: str = "fpn"
    """`none`: the map that the backbone's tail follows; `fpn`: a feature pyramid."""
    pool: str = "align"
    """`pool`: RoI pooling; `align`: RoIAlign; `align_v1`: as it was first published, half a cell off."""
    mask_pool_size: int = within("[1, 100]", 14)
    """Cells a side of what the mask branch reads of a region; its masks have twice as many."""
    mask_convs: int = within("[0, 100]", 4)
    """3x3 convolutions of the mask branch, in front of the one that doubles the cells."""
    mask_channels: int = within("[1, 100000]", 256)
    """Of these convolutions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training != "joint":
            raise UserError("model.training: mask_rcnn is trained jointly; the four steps are Faster R-CNN's")


class MaskHead(nn.Module):
    """Convolutions, one that doubles the cells, and a mask for each class (figure 4, right)."""

    def __init__(self, channels: int, convs: int, width: int, classes: int) -> None:
        super().__init__()
        inputs = [channels, *[width] * convs]
        self.convs = nn.ModuleList(nn.Conv2d(before, width, 3, padding=1) for before in inputs[:convs])
        self.deconv = nn.ConvTranspose2d(inputs[-1], width, 2, 2)
        self.predictor = nn.Conv2d(width, classes, 1)
        for layer in (*self.convs, self.deconv, self.predictor):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # pyright: ignore
            nn.init.zeros_(layer.bias)  # pyright: ignore

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, channels, S, S) -> logits (N, classes, 2 S, 2 S)."""
        x = pooled
        for layer in self.convs:
            x = layer(x).relu_()
        return self.predictor(self.deconv(x).relu_())


class ImageFeatures(NamedTuple):
    """What masks are read from: maps (B, C, H, W) each, of images of `sizes` (B, 2)."""

    maps: tuple[Tensor, ...]
    sizes: Tensor


@MODELS.register("mask_rcnn")
class MaskRCNN(FasterRCNN):
    """Faster R-CNN, and a mask head on the same maps, of regions in training, of detections after NMS in detection."""

    config_type = MaskRCNNConfig
    paper = Paper("Mask R-CNN", 2017)
    takes_masks: ClassVar[bool] = True
    class_layers: ClassVar[tuple[str, ...]] = (*FasterRCNN.class_layers, "mask_head.predictor.")
    config: MaskRCNNConfig

    def __init__(self, config: MaskRCNNConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config, classes)
        c, maps = config, self.map_info[self.pooled_maps]
        assert isinstance(self.features, MapFeatures)
        offset = self.features.pooling.offset
        self.mask_features = MapFeatures(maps, c.pool, c.mask_pool_size, c.canonical_scale, offset)
        self.mask_head = MaskHead(maps[0].channels, c.mask_convs, c.mask_channels, len(classes))

    # 3 training: the average binary cross-entropy of the mask of each positive region's class

    def sampled_losses(self, prepared: list[Tensor], sampled: SampledRegions, targets: Targets) -> dict[str, Tensor]:
        losses = super().sampled_losses(prepared, sampled, targets)
        return losses | {"mask": self.mask_loss(prepared, sampled, targets)}

    def mask_loss(self, prepared: list[Tensor], sampled: SampledRegions, targets: Targets) -> Tensor:
        """Of the positives, which come first; the other places of an image count for nothing."""
        most = max(1, int(self.config.batch_size_per_image * self.config.positive_fraction))
        boxes, labels, matched = (x[:, :most] for x in (sampled.boxes, sampled.labels, sampled.matched_gt_index))
        positive = sampled.valid[:, :most] & (matched >= 0)
        side = 2 * self.config.mask_pool_size
        logits = self.mask_head(self.mask_features.pool(prepared, boxes).flatten(0, 1))
        logits = of_class(logits, torch.where(positive, labels, 0).flatten()).view(*boxes.shape[:2], side, side)
        wanted = mask_targets(packed_masks(targets), boxes, matched.clamp(min=0), side)
        loss = binary_cross_entropy_with_logits(logits.float(), wanted, reduction="none").mean((2, 3))
        return torch.where(positive, loss, 0).sum() / positive.sum().clamp(min=1)

    # 3 inference: masks of the detections

    def kept_features(self, images: Images, prepared: list[Tensor]) -> ImageFeatures:
        return ImageFeatures(tuple(prepared[self.pooled_maps]), images.sizes)

    def refine(self, images: Images, detections: Detections, features: ImageFeatures) -> Detections:
        """Add `masks` to the detections: (B, D, M, M), how probable it is that a cell of the box is the object's."""
        boxes = scale(detections.boxes, features.sizes / images.original)
        # Waits for the device: padding, which comes last, would cost as much as detections do, and is most there is.
        most = int(detections.valid.sum(1).max()) if detections.labels.numel() else 0
        labels = detections.labels[:, :most].clamp(min=0)
        side, step = 2 * self.config.mask_pool_size, self.mask_features.chunk_size(len(boxes))
        found = boxes.new_zeros(*detections.labels.shape, side, side)
        for at in range(0, most, step):  # as many as fit in memory at once
            part = slice(at, min(at + step, most))
            pooled = self.mask_features.pool([*features.maps], boxes[:, part])
            logits = of_class(self.mask_head(pooled.flatten(0, 1)), labels[:, part].flatten())
            found[:, part] = logits.float().sigmoid().view(*pooled.shape[:2], side, side)
        masks = found * detections.valid.view(*detections.labels.shape, 1, 1)
        return replace(detections, extra={**detections.extra, "masks": masks})

    # what it tells of itself

    def raw_outputs(self, images: Images) -> list[Tensor]:
        maps = self.features.prepare(images, self)
        boxes = self.rpn(maps).anchors[0][:5].expand(len(images), -1, -1)
        masks = self.mask_head(self.mask_features.pool(maps, boxes).flatten(0, 1))
        return [*super().raw_outputs(images), masks.unflatten(0, boxes.shape[:2])]

    def trace(self, images: Images, targets: Targets | None = None) -> Trace:
        trace = super().trace(images, targets)
        maps = [of_level.float() for of_level in trace.predictions.features.maps]  # read outside autocast

        def of_boxes(boxes: Tensor) -> Tensor:
            return self.mask_head(self.mask_features.pool(maps, boxes[None])[0]).sigmoid()

        return replace(trace, steps=[*trace.steps, MaskStep(trace.predictions.scores[0], of_boxes, THRESHOLD)])

    def learned_steps(self, prepared: list[Tensor], proposals: Proposals, targets: Targets) -> list[Step]:
        sampled = self.sample_step(prepared, proposals, targets)
        positive = sampled.matched_gt_index >= 0
        regions, matched = sampled.boxes[positive], sampled.matched_gt_index[positive]
        packed, side = targets.extra.get("masks"), 2 * self.config.mask_pool_size
        masks = None if packed is None else mask_targets(packed, regions[None], matched[None], side)[0]
        return [sampled, MaskTargetStep(regions, matched, masks)]

    def export_parts(self) -> dict[str, ExportPart]:
        side = 2 * self.config.mask_pool_size
        pooled = regions_input(self.mask_features.shape, "of detections, after NMS, pooled from the map, see pooling")
        text = f"(regions, {len(self.classes)}, {side}, {side}) float32, of each class; a sigmoid makes it the mask"
        facts = {**self.mask_features.facts(), "mask": {"threshold": THRESHOLD}}
        part = ExportPart(Function(self.mask_head, self.mask_head.forward), {"pooled": pooled}, {"masks": text}, facts)
        return {**super().export_parts(), "-mask": part}

    def use_parts(self, parts: Mapping[str, PartRun]) -> None:
        super().use_parts(parts)
        self.mask_head.forward = lambda pooled: parts["-mask"](pooled=pooled)[0]


def of_class(masks: Tensor, labels: Tensor) -> Tensor:
    """(N, classes, M, M) and (N,) labels -> (N, M, M), the mask of the class of each."""
    index = labels.view(-1, 1, 1, 1).expand(-1, 1, *masks.shape[2:])
    return masks.gather(1, index).squeeze(1)


def packed_masks(targets: Targets) -> Tensor:
    """Return the objects' masks, see `ops.pack_masks`; UserError where there are objects and no masks."""
    if "masks" in targets.extra and targets.labels.shape[1]:
        return targets.extra["masks"]
    if targets.labels.shape[1]:
        raise UserError("mask_rcnn learns masks, and these objects have none: no `masks` in Targets.extra")
    return torch.zeros(len(targets.labels), 1, 1, 1, dtype=torch.uint8, device=targets.labels.device)
