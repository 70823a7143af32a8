"""Fast R-CNN (Girshick, ICCV 2015), beside the paper from top to bottom.

Where the paper and its code differ, and what detkit does:
- Regression targets are normalised by their mean and standard deviation over the training proposals, class by class
  (code; section 2.3 speaks of zero mean and unit variance). The code folds them into the weights when it saves; here
  they are two buffers beside the weights, which is the same function.
- Difficult objects are trained on, as in the paper's main results (`data.difficult`).
- Boxes are continuous: no "+ 1". Regions are not deduplicated on the map's grid, which changes no result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from detkit.backbones import create_backbone
from detkit.config import within
from detkit.models.base import SGD, Paper, Stage, StageRun
from detkit.models.region import PooledConfig, RegionDetector, cell_offsets
from detkit.models.region_features import MapFeatures, PyramidFeatures, RoIPooling
from detkit.models.region_head import RegionHead
from detkit.models.registry import MODELS
from detkit.ops import gather_boxes, match_regions
from detkit.structures import InputSpec


@dataclass
class FastRCNNConfig(PooledConfig):
    """The defaults are Fast R-CNN for VOC (sections 2 and 3, and the authors' code)."""

    name: str = "fast_rcnn"
    scales: list[int] = within("[1, 10000]", [])
    """Short sides of an image pyramid, pixels, in place of `size` (section 3). Training draws one for each image."""
    longest: int = within("[1, 10000]", 2000)
    """With `scales`: most pixels of the long side."""
    batch_size_per_image: int = within("[1, inf)", 64)
    """Regions of an image that training samples."""
    bg_iou: list[float] = field(default_factory=lambda: [0.1, 0.5])
    """IoU [low, high) of the regions that are background."""


@dataclass(frozen=True)
class DeltaStatistics:
    """A stage before SGD: mean and standard deviation of each class's deltas over the training proposals.

    (Fast R-CNN, section 2.3: targets of zero mean and unit variance; the code takes the proposals of IoU >= `fg_iou`.)
    """

    name: str = "delta_statistics"
    iterations_factor: int = 0

    def run(self, detector: RegionDetector, run: StageRun) -> None:
        """Set the buffers of the region head; a class of less than two proposals keeps mean 0 and deviation 1."""
        run.restore(detector)
        head: RegionHead = detector.head
        sums = torch.zeros(3, head.classes, 4, dtype=torch.float64)
        for targets, proposals in run.regions():
            objects = (targets.boxes, targets.valid, targets.ignore)
            match = match_regions(*objects, proposals.boxes, proposals.valid, detector.config.fg_iou)
            positive = match.index >= 0
            matched = match.index.clamp(min=0)
            gt_boxes = gather_boxes(targets.boxes, matched)
            deltas = head.coder.encode(gt_boxes, proposals.boxes)[positive].double()
            label = targets.labels.gather(1, matched)[positive]
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
    """Backbone once an image, RoI pooling of stored proposals, and the backbone's tail with two siblings on top."""

    config_type = FastRCNNConfig
    paper = Paper("Fast R-CNN", 2015)
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
        conv5, (offset, _) = self.backbone.info[-1], cell_offsets(c, self.backbone)
        if c.scales:  # 2.4 and 3: scale invariance by an image pyramid
            pooling = RoIPooling(c.pool, c.pool_size, conv5.stride, offset)
            self.features = PyramidFeatures(conv5, pooling, c.scales, c.longest, random_scale=True)
        else:
            self.features = MapFeatures([conv5], c.pool, c.pool_size, offset=offset)
        self.head = RegionHead(tail, conv5.channels, c.pool_size, len(classes))
        self.freeze_layers(c.freeze_stages, c.freeze_norms)

    def stages(self) -> Sequence[Stage]:
        return [DeltaStatistics(), SGD()]
