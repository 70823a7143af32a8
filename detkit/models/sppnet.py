"""SPPNet (He et al., ECCV 2014, and PAMI 2015), section 4: detection, beside the paper from top to bottom.

Where the paper and its code differ, and what detkit does:
- A region is pooled at the scale where its area is closest to 224 x 224 (paper); the code's rule differs a little.
- The largest of the five scales is 1200, and the fourth 864 (paper; code: 874).
- Windows for fine-tuning come from all images of a step, 64 each, where the code draws them from all images. Each is
  pooled at a random scale (code).
- The SVMs take one of several negatives that are the same cells of the map (code).
- Testing is NMS of the regions of a class, its best 100, regression, NMS once more (code).
- The snapshot that is tested is the last one; the code takes the one of least error on VOC07's test split.
- ImageNet weights trained with the pyramid in place are not published for these backbones: fc6 and fc7 start anew.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from detkit.backbones import create_backbone, fully_connected
from detkit.config import BackboneConfig, within
from detkit.errors import UserError
from detkit.models.base import Paper
from detkit.models.parts import ExportPart
from detkit.models.region_features import PyramidFeatures, SpatialPyramidPooling
from detkit.models.registry import MODELS
from detkit.models.shape_checks import check_pixels
from detkit.models.svm_detector import SVMDetector, SVMDetectorConfig, SVMHead
from detkit.ops import nms_dense
from detkit.structures import InputSpec, Predictions, Proposals

DROPOUT = 0.5  # after fc6 and fc7
SHRINK = 6.5 / 16  # strides that a cell's middle may lie outside a region (the code's offset)


@dataclass
class SPPNetConfig(SVMDetectorConfig):
    """The defaults are SPPNet with ZF-5 for VOC (section 4 and the authors' code)."""

    name: str = "sppnet"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("zfnet"))
    scales: list[int] = within("[1, 10000]", [480, 576, 688, 864, 1200])
    """Short sides of the image pyramid, pixels."""
    pyramid: list[int] = within("[1, 6]", [6, 3, 2, 1])
    """Bins a side of the levels of spatial pyramid pooling."""
    frozen: bool = True
    """Whether the convolutions stay as they are, and only fc6, fc7 and the classifier are fine-tuned."""
    bg_iou: list[float] = field(default_factory=lambda: [0.1, 0.5])
    """IoU [low, high) of the regions that are background."""
    batch_size_per_image: int = within("[1, inf)", 64)
    """Regions of an image that fine-tuning samples."""
    region_nms_iou: float = within("[0, 1]", 0.3)
    """IoU above which the worse of two regions of a class is suppressed before boxes are regressed, in testing; 1: none
    is."""
    ridge: float = within("(0, inf)", 4000.0)
    """Lambda of the box regression."""
    ridge_match_iou: float = within("(0, 1]", 0.5)
    """Least IoU with its object of a proposal that the box regression learns from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("scales", "pyramid"):
            if not getattr(self, key):
                raise UserError(f"model.{key}: empty")


@MODELS.register("sppnet")
class SPPNet(SVMDetector):
    """Backbone once an image and scale, and a pyramid of bins over the map of each region."""

    config_type = SPPNetConfig
    paper = Paper("Spatial Pyramid Pooling in Deep Convolutional Networks for Visual Recognition", 2014)

    def __init__(self, config: SPPNetConfig, classes: tuple[str, ...]) -> None:
        super().__init__(config, classes, InputSpec(mean=config.mean, std=config.std, resize="none"))
        c = self.config = config
        self.region_nms_iou = c.region_nms_iou
        self.backbone = create_backbone(c.backbone)
        self.backbone.truncate(self.backbone.region)
        conv5 = self.backbone.info[-1]
        check_pixels(self.backbone, "scales", min(c.scales))
        # 4.1: each region pooled from the map of the scale that suits its size
        centre, shrink = self.backbone.first_cell_centre, SHRINK * conv5.stride
        pooling = SpatialPyramidPooling(tuple(c.pyramid), conv5.stride, centre, shrink)
        self.features = PyramidFeatures(conv5, pooling, c.scales, random_scales=True)
        # 4.1: fc6 and fc7 on the pyramid's vector
        channels, bins = self.features.shape
        tail = fully_connected(channels * bins, self.backbone.width, DROPOUT)
        self.head = SVMHead(tail, self.features.shape, len(classes), c.scoring)
        if c.frozen:
            self.freeze_layers(len(self.backbone.layer_groups()), True)

    def export_parts(self) -> dict[str, ExportPart]:
        parts = super().export_parts()
        parts["-head"].facts["region_nms_iou"] = self.region_nms_iou
        return parts

    def predict_regions(
        self, prepared: Any, proposals: Proposals, watch: Callable[[Tensor], None] | None = None
    ) -> Predictions:
        """Suppressed regions have a score of -inf: the best of the others, moved, go through NMS once more (code)."""
        predictions = super().predict_regions(prepared, proposals, watch)
        scores = predictions.scores
        regions, classes = scores.shape[1:]
        limits = {"top_k": regions, "max_out": regions * classes}
        index, label = nms_dense(proposals.boxes, scores, iou=self.region_nms_iou, **limits)
        # what pads writes to a column that is dropped
        flat = torch.where(label >= 0, index * classes + label, regions * classes)
        kept = torch.zeros(len(flat), regions * classes + 1, dtype=torch.bool, device=flat.device).scatter_(
            1, flat, True
        )
        return replace(predictions, scores=scores.masked_fill(~kept[:, :-1].view(scores.shape), -torch.inf))
