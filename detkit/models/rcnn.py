"""R-CNN (Girshick et al., CVPR 2014), beside the paper from top to bottom.

Where the paper and its code differ, and what detkit does:
- Windows for fine-tuning are drawn image by image, a quarter of them positive, from `train.batch` images at once; the
  paper draws 32 + 96 from those of all images.
- Features have their mean norm, and not each its own, scaled to 20 before the SVMs and the regression (code).
- Hard negatives are mined in one pass over the images (code and section 2.3); the SVMs of all classes that have enough
  new ones are fitted in one go.
- The regression's targets are whitened in the code, which changes no result, see `ops.fit_ridge`.
- Boxes are continuous: no "+ 1". They are regressed before NMS, as in the code.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, max_pool2d

from detkit.backbones import create_backbone
from detkit.config import BackboneConfig
from detkit.errors import UserError
from detkit.models.base import Paper
from detkit.models.region import at_least_one
from detkit.models.registry import MODELS
from detkit.models.shape_checks import check_pixels, tail_width
from detkit.models.svm_detector import SVMDetector, SVMDetectorConfig, SVMHead
from detkit.ops import crop_warp, crops_per_chunk
from detkit.structures import Images, InputSpec

PIECE = 32 << 20  # bytes of crops that pass the network at once: its maps take some twenty times as much


@dataclass
class RCNNConfig(SVMDetectorConfig):
    """The defaults are R-CNN with AlexNet for VOC (sections 2 and 3, appendices A to C); see SVMDetectorConfig, too.

    crop: pixels a side of a warped region; context: how many of them show its surroundings. pool_size: cells a side of
    what the backbone's tail reads. number counts the windows of an image.
    """

    name: str = "rcnn"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("alexnet"))
    crop: int = 227
    context: int = 16
    pool_size: int = 6
    batch_size_per_image: int = 4
    bg_iou: list[float] = field(default_factory=lambda: [0.0, 0.5])

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "crop", "pool_size")
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
        self.map = self.backbone.info[-1]
        check_pixels(self.backbone, "crop", c.crop)
        tail_width(tail, self.map.channels, c.pool_size)
        self.head = SVMHead(tail, (self.map.channels, c.pool_size, c.pool_size), len(classes))

    def prepare(self, images: Images) -> Images:
        return images

    def crops(self, images: Images, boxes: Tensor) -> Tensor:
        """2.1: regions (B, R, 4) -> what the network sees of them, (B, R, 3, crop, crop) float32, RGB from 0 to 255."""
        c = self.config
        mean = [value * self.input.divisor for value in c.mean]
        return crop_warp(images.pixels, boxes, c.crop, c.context, mean, images.sizes)

    def pool(self, prepared: Images, boxes: Tensor) -> Tensor:
        """2.1 feature extraction: regions (B, R, 4) -> pool5 (B * R, C, pool_size, pool_size)."""
        return self.features(self.crops(prepared, boxes).flatten(0, 1))

    def features(self, crops: Tensor) -> Tensor:
        """Warped regions (N, 3, crop, crop), 0 to 255 -> pool5 (N, C, pool_size, pool_size)."""
        crops = ((crops - self._shift) * self._scale).contiguous(memory_format=torch.channels_last)
        return pool_to(self.backbone(crops)[self.map.name], self.config.pool_size)

    def chunk_size(self, images: int) -> int:
        return max(1, crops_per_chunk(self.config.crop, PIECE) // max(1, images))


def pool_to(x: Tensor, size: int) -> Tensor:
    """Adaptive max pooling of square maps (N, C, side, side) to (N, C, size, size).

    At the published sizes its bins are those of the ImageNet network's last pooling layer; where they are all alike
    they are pooled as such a layer does, which unlike adaptive bins can be exported.
    """
    side = x.shape[-1]
    starts = [cell * side // size for cell in range(size)]
    lengths = {-(-(cell + 1) * side // size) - start for cell, start in enumerate(starts)}
    strides = {after - start for start, after in pairwise(starts)} or {1}
    if len(lengths) == len(strides) == 1 and 0 not in strides:
        return max_pool2d(x, lengths.pop(), strides.pop())
    return adaptive_max_pool2d(x, size)
