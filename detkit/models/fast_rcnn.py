"""Fast R-CNN (Girshick, ICCV 2015), beside the paper from top to bottom.

Where the paper and its code differ, and what detkit does:
- Regression targets are normalised by their mean and standard deviation over the training proposals and the objects
  themselves, class by class (code; section 2.3 speaks of zero mean and unit variance). The code counts mirrored images,
  too, and folds both into the weights when it saves; here they are of the images as they are, and two buffers beside
  the weights, which is the same function.
- Difficult objects are trained on, as in the paper's main results (`data.difficult`).
- Boxes are continuous: no "+ 1". Regions are not deduplicated on the map's grid, which changes no result.
- RoI pooling knows where the backbone's cells lie; with `model.geometry: published` it doesn't, as in the code, where
  those of VGG16 lie 7.5 pixels off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from detkit.backbones import create_backbone
from detkit.config import within
from detkit.models.base import SGD, Paper, Stage
from detkit.models.region import PooledConfig, RegionDetector, cell_offsets
from detkit.models.region_features import MapFeatures, PyramidFeatures, RoIPooling
from detkit.models.region_head import DeltaStatistics, RegionHead
from detkit.models.registry import MODELS
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
