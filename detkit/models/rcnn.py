"""R-CNN (Girshick et al., CVPR 2014), beside the paper from top to bottom.

Where the paper and its code differ, and what detkit does:
- Windows for fine-tuning are sampled image by image, a quarter of them positive, from `train.batch` images at once; the
  paper draws 32 + 96 from those of all images.
- Features have their mean norm, and not each its own, scaled to 20 before the SVMs and the regression (code).
- Hard negatives are mined in one pass over the images (code and section 2.3); the SVMs of all classes that have enough
  new ones are fitted in one go.
- The regression's targets are whitened in the code, which changes no result, see `ops.fit_ridge`.
- Boxes are continuous: no "+ 1". The best 100 of a class are regressed before NMS, as in the code.
- Objects' own boxes are among the regions that SVMs and regression see (code).
"""

from dataclasses import dataclass, field

from detkit.backbones import create_backbone
from detkit.config import BackboneConfig, within
from detkit.errors import UserError
from detkit.models.base import Paper
from detkit.models.region_features import CropFeatures
from detkit.models.registry import MODELS
from detkit.models.shape_checks import check_pixels
from detkit.models.svm_detector import SVMDetector, SVMDetectorConfig, SVMHead
from detkit.structures import InputSpec


@dataclass
class RCNNConfig(SVMDetectorConfig):
    """The defaults are R-CNN with AlexNet for VOC (sections 2 and 3, appendices A to C)."""

    name: str = "rcnn"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("alexnet"))
    crop: int = within("[1, 10000]", 227)
    """Side of a warped region, pixels."""
    context: int = within("[0, inf)", 16)
    """Pixels of a warped region's border that show its surroundings."""
    pool_size: int = within("[1, 100]", 6)
    """Cells a side of what the backbone's tail reads."""
    batch_size_per_image: int = within("[1, inf)", 4)
    """Regions of an image that fine-tuning samples."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= 2 * self.context < self.crop:
            raise UserError(f"model.context: {self.context} leaves nothing of a crop of {self.crop} pixels")


@MODELS.register("rcnn")
class RCNN(SVMDetector):
    """Every region cut out, warped to a square and sent through the whole network."""

    config_type = RCNNConfig
    paper = Paper("Rich feature hierarchies for accurate object detection and semantic segmentation", 2014)

    def __init__(self, config: RCNNConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config, classes, InputSpec(mean=config.mean, std=config.std, resize="none"))
        c = self.config = config
        # 2.3 domain-specific fine-tuning: the ImageNet classifier gives way to one of N + 1 classes
        self.backbone = create_backbone(c.backbone, tail=True)
        tail = self.take_tail(c.pool_size)
        pool5 = self.backbone.info[-1]
        check_pixels(self.backbone, "crop", c.crop)
        # 2.1 feature extraction
        mean = [value * self.input.divisor for value in c.mean]
        self.features = CropFeatures(pool5.channels, c.crop, c.context, mean, c.pool_size)
        self.head = SVMHead(tail, self.features.shape, len(classes), c.scoring)
