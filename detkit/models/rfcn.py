"""R-FCN (Dai et al., NIPS 2016), beside the paper from top to bottom.

Where the paper and its code differ, and what detkit does:
- Training is joint, as in the authors' Python code; the paper's tables are of Faster R-CNN's 4 steps, and the MATLAB
  code takes the proposals of an RPN trained before.
- The paper trains 20,000 steps at .001 and 10,000 at .0001 on 8 images each; the code, and the configs here, 80,000 and
  30,000 on two.
- Hard examples are the 128 of the largest loss among an image's 300 proposals and its objects, without NMS (code; the
  paper's reference to OHEM has NMS).
- Deltas of background, for which the code keeps a second set of maps that nothing trains, have none here: 4 k^2 maps.
- conv5 is that of torchvision's ResNet, whose first 3x3 convolution has the stride; it becomes 1 and the two behind it
  are dilated. In the code's network a 1x1 convolution in front has it, and all three are dilated.
- A region covers whole cells of the map, as in RoI pooling, and its parts begin and end at them; the code's begins
  within a cell.
- Difficult objects are not trained on, and regions that overlap them alone are left out of the loss.
- Boxes are continuous: no "+ 1".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from detkit.backbones import create_backbone
from detkit.config import within
from detkit.models.base import Paper
from detkit.models.region import MapConfig, SampledRegions, cell_offsets, label_regions
from detkit.models.region_features import PositionSensitive
from detkit.models.region_head import CODER
from detkit.models.registry import MODELS
from detkit.models.rpn import RPN, RPNConfig
from detkit.models.rpn_detector import RPNDetector
from detkit.models.trace import PositionStep, RegressionStep, SampleStep, Step, Trace
from detkit.ops import hard_regions, ohem_loss
from detkit.structures import Images, InputSpec, Proposals, Targets


@dataclass
class RFCNConfig(RPNConfig, MapConfig):
    """The defaults are R-FCN for VOC (sections 2 and 3, and the authors' code)."""

    name: str = "rfcn"
    reduced: int = within("[1, 100000]", 1024)
    """Channels of the 1x1 convolution between the backbone and the position-sensitive maps."""
    ohem: bool = True
    """Whether training takes the `batch_size_per_image` proposals of the largest loss, and not a random sample."""
    pre_nms_top_n: int | None = within("[1, inf)", 6000)
    """Training: best candidates that NMS looks at."""
    post_nms_top_n: int = within("[1, inf)", 300)
    """Training: proposals of an image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_rpn()


class VoteHead(nn.Module):
    """Scores and deltas of a region: the means of what its k x k parts found (section 2.2). It has no weights.

    classes: their number. hard: how many of an image's regions its loss is of, None for all.
    """

    coder = CODER

    def __init__(self, classes: int, hard: int | None) -> None:
        super().__init__()
        self.classes, self.hard = classes, hard

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """(..., classes + 5, k, k) -> logits (..., classes + 1), background last, and deltas (..., 4)."""
        votes = pooled.float().mean((-2, -1))
        return votes[..., : self.classes + 1], votes[..., self.classes + 1 :]

    def logits(self, pooled: Tensor) -> Tensor:
        return self(pooled)[0]

    def losses(self, pooled: Tensor, sampled: SampledRegions) -> dict[str, Tensor]:
        return ohem_loss(*self.learned(pooled, sampled), self.hard)

    def learned(self, pooled: Tensor, sampled: SampledRegions) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return what the loss is of, see `ohem_loss`."""
        logits, deltas = self(pooled)
        return (logits, deltas, sampled.labels, sampled.target_deltas(self.coder), sampled.valid)

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = (output.unflatten(0, pooled.shape[:2]) for output in self.raw(pooled.flatten(0, 1)))
        return logits.softmax(-1)[..., :-1], deltas.unsqueeze(2)

    def raw(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        return self(pooled)

    def outputs(self) -> dict[str, str]:
        return {
            "logits": f"(regions, {self.classes + 1}) float32, of each class and, last, background; a softmax makes "
            "them scores",
            "deltas": "(regions, 4) float32, of all classes alike, from the regions, see coder",
        }


@MODELS.register("rfcn")
class RFCN(RPNDetector):
    """Fully convolutional: what is computed of each region is a mean of cells of position-sensitive maps."""

    config_type = RFCNConfig
    paper = Paper("R-FCN: Object Detection via Region-based Fully Convolutional Networks", 2016)
    supports_svd: ClassVar[bool] = False
    class_layers: ClassVar[tuple[str, ...]] = ("score_maps.",)
    rpn_maps, pooled_maps = slice(1), slice(1, None)
    pooled_names = ("scores", "boxes")
    features: Any
    head: VoteHead

    def __init__(self, config: RFCNConfig, classes: tuple[str, ...]) -> None:
        spec = InputSpec((config.size[0], config.size[1]), config.mean, config.std, resize="shortest")
        super().__init__(config, classes, spec)
        c = self.config = config
        # 2.2 backbone: conv5 has the cells of conv4, where the RPN is
        self.backbone = create_backbone(c.backbone)
        self.backbone.dilate()
        self.map_info = self.choose_maps([self.backbone.region], "backbone")
        deepest, bins = self.backbone.info[-1], c.pool_size**2
        offset, anchor_offset = cell_offsets(c, self.backbone)
        self.rpn = RPN(self.map_info, c, anchor_offset)

        # 2.2 position-sensitive score maps, and those of boxes
        self.reduce = nn.Conv2d(deepest.channels, c.reduced, 1)
        self.score_maps = nn.Conv2d(c.reduced, bins * (len(classes) + 1), 1)
        self.box_maps = nn.Conv2d(c.reduced, bins * 4, 1)
        for layer in (self.reduce, self.score_maps, self.box_maps):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        # 2.2 position-sensitive RoI pooling, and the vote
        self.features = PositionSensitive(len(classes) + 5, c.pool_size, deepest.stride, offset)
        self.head = VoteHead(len(classes), c.batch_size_per_image if c.ohem else None)
        self.freeze_layers(c.freeze_stages, c.freeze_norms)

    def backbone_maps(self, x: Tensor) -> list[Tensor]:
        maps = self.backbone(x)
        deepest = self.reduce(maps[self.backbone.info[-1].name]).relu_()
        return [maps[self.map_info[0].name], self.score_maps(deepest), self.box_maps(deepest)]

    # 2.2 training, with online hard example mining

    def region_losses(self, prepared: Any, proposals: Proposals, targets: Targets) -> dict[str, Tensor]:
        if not self.config.ohem:
            return super().region_losses(prepared, proposals, targets)
        regions = label_regions(proposals, targets, len(self.classes), self.config)
        # of all regions in one pass: unlike layers of their own, their share in it costs next to nothing
        return self.head.losses(self.features.pool(prepared, regions.boxes), regions)

    # what it tells of itself

    def sample_step(self, prepared: Any, proposals: Proposals, targets: Targets) -> SampleStep:
        if not self.config.ohem:
            return super().sample_step(prepared, proposals, targets)
        regions = label_regions(proposals, targets, len(self.classes), self.config)
        pooled = self.features.pool(prepared, regions.boxes)
        _, _, hard = hard_regions(*self.head.learned(pooled, regions), self.head.hard)
        return SampleStep(
            regions.boxes[hard],
            regions.matched_gt_index[hard],
            name="regions",
            title="Hard regions (training)",
            text="What training would learn from this image: the {samples} regions of the largest loss (online hard "
            "example mining), {positive} that overlap an object enough, with the object's class, and {negative} of "
            "background.",
            legend=("region of", "background"),
        )

    def trace(self, images: Images, targets: Targets | None = None) -> Trace:
        prepared = self.features.prepare(images, self)
        proposals, steps = self.trace_proposals(images, prepared, targets)
        if targets is not None:
            steps.append(self.sample_step(prepared, proposals, targets))
        predictions = self.predict_regions(prepared, proposals)
        regions, k = proposals.boxes, self.config.pool_size

        def parts(region: int, label: int) -> tuple[Tensor, Tensor]:
            pooled = self.features.pool(prepared, regions[:, region : region + 1])
            maps = prepared[1][0].unflatten(0, (len(self.classes) + 1, k, k))
            return maps[label].float(), pooled[0, 0, label]

        last: Sequence[Step] = (
            PositionStep(regions[0], predictions.scores[0], self.features.stride, parts),
            RegressionStep(regions[0]),
        )
        return Trace(predictions, [*steps, *last])
