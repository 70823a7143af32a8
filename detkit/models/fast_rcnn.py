"""Fast R-CNN (Girshick, ICCV 2015), beside the paper from top to bottom.

Where the paper and its code differ, and what detkit does:
- Regression targets are normalised by their mean and standard deviation over the training proposals, class by class
  (code; section 2.3 speaks of zero mean and unit variance). The code folds them into the weights when it saves; here
  they are two buffers beside the weights, which is the same function.
- Difficult objects are trained on, as in the paper's main results (`data.difficult`).
- Boxes are continuous: no "+ 1". Regions are not deduplicated on the map's grid, which changes no result.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from detkit.backbones import create_backbone
from detkit.errors import UserError
from detkit.models.base import SGD
from detkit.models.region import DeltaStatistics, MapFeatures, RegionConfig, RegionDetector, RegionHead, sample_regions
from detkit.models.registry import MODELS
from detkit.ops import region_loss
from detkit.structures import Images, InputSpec, Predictions, Proposals, Targets


@dataclass
class FastRCNNConfig(RegionConfig):
    """The defaults are Fast R-CNN for VOC (sections 2 and 3, and the authors' code); keys: see RegionConfig."""

    name: str = "fast_rcnn"
    number: int = 64
    background: list[float] = field(default_factory=lambda: [0.1, 0.5])


@MODELS.register("fast_rcnn")
class FastRCNN(RegionDetector):
    """Backbone once an image, RoI pooling of given proposals, and the backbone's tail with two siblings on top."""

    config_type = FastRCNNConfig
    given_proposals = True

    def __init__(self, config: FastRCNNConfig, classes: tuple[str, ...]) -> None:
        spec = InputSpec((config.size[0], config.size[1]), config.mean, config.std, resize="shortest")
        super().__init__(config, classes, spec)
        c = self.config = config
        # 2.1, 2.2: the last pooling layer of an ImageNet network becomes RoI pooling, its classifier two layers
        self.backbone = create_backbone(c.backbone, tail=True)
        tail = self.backbone.tail(c.pool_size)
        self.map = self.backbone.info[-1]
        self.region_features = MapFeatures([self.map], c.pool, c.pool_size)
        self.head = RegionHead(tail, self.map.channels, c.pool_size, len(classes))
        self.freeze_layers(c.stages, c.norms)

    def stages(self) -> list[DeltaStatistics | SGD]:
        return [DeltaStatistics(self.config.foreground), SGD()]

    def regions(self, images: Images, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (B, R, 4) -> logits (B, R, C + 1), background last, and normalised deltas (B, R, C, 4)."""
        x = self.backbone(self.normalise(images))[self.map.name]
        return self.head(self.region_features([x], boxes), len(boxes))

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


def proposals_of(images: Images) -> Proposals:
    """Return the proposals that came with a batch; UserError where there are none."""
    if images.proposals is None:
        raise UserError(
            "data.proposals: this detector classifies given regions and has none; make them with "
            "`detkit proposals make CONFIG` and name the store in data.proposals"
        )
    return images.proposals
