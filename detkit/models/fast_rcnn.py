"""Fast R-CNN (Girshick, ICCV 2015), beside the paper from top to bottom.

Where the paper and its code differ, and what detkit does:
- Regression targets are normalised by their mean and standard deviation over the training proposals, class by class
  (code; section 2.3 speaks of zero mean and unit variance). The code folds them into the weights when it saves; here
  they are two buffers beside the weights, which is the same function.
- Difficult objects are trained on, as in the paper's main results (`data.difficult`).
- Boxes are continuous: no "+ 1". Regions are not deduplicated on the map's grid, which changes no result.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from detkit.backbones import create_backbone
from detkit.models.base import SGD, Paper
from detkit.models.image_pyramid import check_scales, image_pyramid, pool_from
from detkit.models.region import (
    CODER,
    MapFeatures,
    PooledConfig,
    RegionDetector,
    RegionHead,
    proposals_of,
    sample_regions,
)
from detkit.models.registry import MODELS
from detkit.ops import match_regions, region_loss
from detkit.structures import Images, InputSpec, Predictions, Targets


@dataclass
class FastRCNNConfig(PooledConfig):
    """The defaults are Fast R-CNN for VOC (sections 2 and 3, and the authors' code); keys: see PooledConfig, too.

    scales: short sides of an image pyramid in pixels, with `longest` for the long side, in place of `size` (section 3).
    Training draws one of them for each image; testing pools each region at the one that suits its size.
    """

    name: str = "fast_rcnn"
    scales: list[int] = field(default_factory=list)
    longest: int = 2000
    batch_size_per_image: int = 64
    bg_iou: list[float] = field(default_factory=lambda: [0.1, 0.5])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scales:
            check_scales(self.scales)


@dataclass(frozen=True)
class DeltaStatistics:
    """A stage before SGD: mean and standard deviation of each class's deltas over the training proposals.

    (Fast R-CNN, section 2.3: targets of zero mean and unit variance; the code takes the proposals of IoU >= `fg_iou`.)
    """

    fg_iou: float
    name: str = "delta_statistics"

    def run(self, detector: RegionDetector, run: Any) -> None:
        """Set the buffers of the region head; a class without proposals keeps mean 0 and deviation 1."""
        run.take_resumed()
        head = detector.head
        assert isinstance(head, RegionHead)
        sums = torch.zeros(3, head.classes, 4, dtype=torch.float64)
        for targets, given in run.regions():
            match = match_regions(targets.boxes, targets.valid, targets.ignore, given.boxes, given.valid, self.fg_iou)
            inside = match.index >= 0
            owner = match.index.clamp(min=0)
            truth = targets.boxes.gather(1, owner.unsqueeze(-1).expand(-1, -1, 4))
            deltas = CODER.encode(truth, given.boxes)[inside].double()
            label = targets.labels.gather(1, owner)[inside]
            for row, values in enumerate((torch.ones_like(deltas), deltas, deltas.square())):
                sums[row].index_add_(0, label, values)
        count, total, squares = sums
        mean = total / count.clamp(min=1)
        std = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        known = count >= 2
        head.delta_mean.copy_(torch.where(known, mean, 0))
        head.delta_std.copy_(torch.where(known & (std > 0), std, 1))


@MODELS.register("fast_rcnn")
class FastRCNN(RegionDetector):
    """Backbone once an image, RoI pooling of given proposals, and the backbone's tail with two siblings on top."""

    config_type = FastRCNNConfig
    paper = Paper("Fast R-CNN", 2015)
    takes_proposals = True
    head: RegionHead

    def __init__(self, config: FastRCNNConfig, classes: tuple[str, ...]) -> None:
        spec = InputSpec((config.size[0], config.size[1]), config.mean, config.std, resize="shortest")
        if config.scales:
            spec = InputSpec(mean=config.mean, std=config.std, resize="none")
        super().__init__(config, classes, spec)
        c = self.config = config
        # 2.1, 2.2: the last pooling layer of an ImageNet network becomes RoI pooling, its classifier two layers
        self.backbone = create_backbone(c.backbone, tail=True)
        tail = self.take_tail(c.pool_size)
        self.map = self.backbone.info[-1]
        self.region_features = MapFeatures([self.map], c.pool, c.pool_size)
        self.head = RegionHead(tail, self.map.channels, c.pool_size, len(classes))
        self.freeze_layers(c.freeze_stages, c.freeze_norms)

    def stages(self) -> list[DeltaStatistics | SGD]:
        return [DeltaStatistics(self.config.fg_iou), SGD()]

    def regions(self, images: Images, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (B, R, 4) -> logits (B, R, C + 1), background last, and normalised deltas (B, R, C, 4)."""
        if self.config.scales:
            pooled = self.pyramid_features(images, boxes)
        else:
            pooled = self.region_features([self.backbone(self.normalise(images))[self.map.name]], boxes)
        return self.head(pooled, len(boxes))

    def pyramid_features(self, images: Images, boxes: Tensor) -> Tensor:
        """2.4 and 3: regions (B, R, 4) of images at one scale each, in training, or all -> (B * R, C, size, size)."""
        scales: list[float] | list[Tensor] = [float(short) for short in self.config.scales]
        if self.training:
            drawn = torch.randint(len(scales), (len(images),), device=boxes.device)
            scales = [torch.tensor(scales, device=boxes.device)[drawn]]
        pixels = self.normalise(images)
        pyramid = image_pyramid(
            lambda x: self.backbone(x)[self.map.name], pixels, images.sizes, scales, self.config.longest
        )
        return pool_from(pyramid, boxes, self.config.scales, self.region_features.pool).flatten(0, 1)

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        """2.3: hierarchical sampling and the multi-task loss."""
        given = proposals_of(images)
        sampled = sample_regions(given.boxes, given.valid, targets, len(self.classes), self.config)
        logits, deltas = self.regions(images, sampled.boxes)
        wanted = self.head.normalise(sampled.wanted, sampled.target)
        return region_loss(logits, deltas, sampled.target, wanted, sampled.valid)

    def predict(self, images: Images) -> Predictions:
        """2.4: scores and boxes of every class for each proposal."""
        given = proposals_of(images)
        logits, deltas = self.regions(images, given.boxes)
        scores = logits.float().softmax(-1)[..., :-1]
        boxes = self.head.decode(deltas.float(), given.boxes)
        return Predictions(boxes, torch.where(given.valid.unsqueeze(-1), scores, -torch.inf))
