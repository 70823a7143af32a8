"""Faster R-CNN (Ren et al., NIPS 2015), beside the paper from top to bottom.

Where the paper and its Python code differ, and what detkit does:
- Training is the approximate joint one (section 3.2, and the code's end2end), where proposals are constants; with
  `model.training: alternating` it is the paper's 4-step one. The RPN's steps are then twice as long as `train` says, of
  half as many images, as published: 80,000 iterations of 1 to Fast R-CNN's 40,000 of 2, their milestones alike. Step 4
  goes on with step 2's head, as in the authors' MATLAB code, where their Python code draws the two siblings anew.
- The RPN has one logit an anchor, not two (the paper's note in section 3.1: logistic regression).
- Both of its losses are divided by the number of sampled anchors (code), not balanced by lambda = 10 (paper).
- Deltas of the second stage are scaled by .1, .1, .2, .2 in joint training (code), by the statistics of each class
  (Fast R-CNN) in the four steps.
- Difficult objects are not trained on, as in the code (`data.difficult: false`), but anchors and regions that overlap
  them alone are left out of the loss, where in the code they are background.
- Boxes are continuous: no "+ 1".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from detkit.backbones import create_backbone
from detkit.config import one_of, within
from detkit.errors import UserError
from detkit.models.base import SGD, Paper, Stage, StageRun
from detkit.models.fpn import FPN, fpn_tail, pad_to
from detkit.models.parts import ExportPart, PartRun, coder_facts
from detkit.models.region import PooledConfig, RegionDetector, cell_offsets, stored_proposals
from detkit.models.region_features import MapFeatures
from detkit.models.region_head import DeltaStatistics, RegionHead
from detkit.models.registry import MODELS
from detkit.models.rpn import CODER as RPN_CODER
from detkit.models.rpn import RPN, RPNConfig, RPNOutput
from detkit.models.trace import Step
from detkit.structures import Images, InputSpec, Predictions, Proposals, Targets


@dataclass
class FasterRCNNConfig(RPNConfig, PooledConfig):
    """The defaults are Faster R-CNN for VOC (sections 3.1 to 3.3, and the authors' code)."""

    name: str = "faster_rcnn"
    training: str = "joint"
    """`joint`, or `alternating`: the paper's four steps."""
    features: list[str] | None = None
    """With a neck: the backbone's maps that it reads; null: all of stride 4 and up."""
    neck: str = "none"
    """`none`: the map that the backbone's tail follows; `fpn`: a feature pyramid."""
    channels: int = within("[1, 100000]", 256)
    """Of the neck's maps."""
    canonical_scale: float = within("(0, inf)", 224.0)
    """Of the neck: pixels a side of a region that is pooled from the map of stride 16."""
    size_divisor: int = within("[1, 10000]", 1)
    """Batches are padded to sides that are a multiple of this, so that the maps of a pyramid fit each other."""
    neck_norm: bool = False
    """Whether the neck's convolutions have batch norm."""
    head_convs: int = within("[0, 100]", 0)
    """With a neck: 3x3 convolutions with batch norm in front of one fully connected layer, in place of two such
    layers. Published with 4 of them and `rpn_convs` 2 (Li et al., 2021)."""
    beta: float = within("[0, inf)", 1.0)
    """Where the smooth L1 of the regions' deltas turns from a square into a line."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_rpn()
        one_of("model.neck", self.neck, ("none", "fpn"))
        one_of("model.training", self.training, ("joint", "alternating"))
        if self.neck == "none" and (self.head_convs or self.neck_norm):
            raise UserError("model.head_convs and model.neck_norm go with model.neck=fpn; without it there is no such")


@dataclass(frozen=True)
class Propose:
    """A stage of 4-step training (3.2): the RPN's regions of all training images, to a store for the stage after it."""

    name: str
    store: str
    iterations_factor: int = 0

    def run(self, detector: RegionDetector, run: StageRun) -> None:
        run.restore(detector)
        run.propose(detector, self.store)


# the proposals of step 2, and those of step 4
STORES = ("proposals/step1.npz", "proposals/step3.npz")
ALTERNATING: tuple[Stage, ...] = (
    SGD("rpn", iterations_factor=2, can_evaluate=False),  # step 1
    Propose("propose", STORES[0]),
    DeltaStatistics("delta_statistics", store=STORES[0]),
    SGD("fast_rcnn", can_evaluate=False, store=STORES[0]),  # step 2
    SGD("rpn_shared", iterations_factor=2, can_evaluate=False),  # step 3
    Propose("propose_shared", STORES[1]),
    DeltaStatistics("delta_statistics_shared", store=STORES[1]),
    SGD("fast_rcnn_shared", store=STORES[1]),  # step 4
)
# what begins anew, as at the start of training: until step 3 the two networks share nothing
RESET = {"fast_rcnn": ("backbone", "neck"), "rpn_shared": ("rpn",)}


@MODELS.register("faster_rcnn")
class FasterRCNN(RegionDetector):
    """Backbone (and neck), region proposal network, and Fast R-CNN's head on the same maps."""

    config_type = FasterRCNNConfig
    paper = Paper("Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", 2015)
    takes_proposals: ClassVar[bool] = False
    head: RegionHead
    stage = "sgd"  # of training, see `begin_stage`

    def __init__(self, config: FasterRCNNConfig, classes: tuple[str, ...]) -> None:
        # torchvision's anchors belong to sides that are cut to whole pixels: they share these out
        floor = config.anchors == "torchvision"
        spec = InputSpec((config.size[0], config.size[1]), config.mean, config.std, resize="shortest", floor=floor)
        super().__init__(config, classes, spec)
        c = self.config = config
        self.backbone = create_backbone(c.backbone, tail=c.neck == "none")
        if c.neck == "none":
            if c.features:
                raise UserError(f"model.features: without a neck regions are pooled from {self.backbone.region} alone")
            maps = self.choose_maps([self.backbone.region], "features")
            tail = self.take_tail(c.pool_size)
            self.neck = None
            offset, anchor_offset = cell_offsets(c, self.backbone)
        else:
            used = self.choose_maps(c.features, "features", min_stride=4)
            self.backbone.truncate(used[-1].name)
            tail = fpn_tail(c.channels, c.pool_size, self.backbone.width, c.head_convs)
            self.neck = FPN(used, c.channels, c.neck_norm)
            maps = self.neck.info
            # as published: coarser maps are upsampled, so that no cell has one middle
            offset = anchor_offset = 0.0
        self.map_info = maps

        # 3.1 region proposal network
        self.rpn = RPN(maps, c, anchor_offset)

        # 3.2 Fast R-CNN on the same maps; the coarsest map of a pyramid serves the RPN alone
        pooled = maps if self.neck is None else maps[:-1]
        self.pooled_maps = len(pooled)
        self.features = MapFeatures(pooled, c.pool, c.pool_size, c.canonical_scale, offset)
        self.head = RegionHead(tail, maps[0].channels, c.pool_size, len(classes), c.beta)
        self.freeze_layers(c.freeze_stages, c.freeze_norms)

    def backbone_maps(self, x: Tensor) -> list[Tensor]:
        x = pad_to(x, self.config.size_divisor)
        return super().backbone_maps(x) if self.neck is None else list(self.neck(self.backbone(x)).values())

    # 3.2 training, jointly or in four steps

    def stages(self) -> Sequence[Stage]:
        return ALTERNATING if self.config.training == "alternating" else super().stages()

    def begin_stage(self, stage: str) -> None:
        """Set what a step of alternating training (3.2) learns, and begin anew what it does not share."""
        self.stage = stage
        if stage == "sgd":
            return
        if stage in RESET:
            fresh = FasterRCNN(self.config, self.classes)
            for name in RESET[stage]:
                if getattr(self, name) is not None:
                    self.get_submodule(name).load_state_dict(fresh.get_submodule(name).state_dict())
        self.requires_grad_(True)
        self.freeze_layers(self.config.freeze_stages, self.config.freeze_norms)
        if stage.endswith("_shared"):
            self.freeze(self.backbone, *([] if self.neck is None else [self.neck]))
        self.freeze(self.head if stage.startswith("rpn") else self.rpn)

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        maps = self.features.prepare(images, self)
        if self.stage.startswith("fast_rcnn"):
            return self.region_losses(maps, stored_proposals(images), targets)
        output = self.rpn(maps)
        losses = self.rpn.losses(output, images.sizes, targets)
        if self.stage.startswith("rpn"):
            return losses
        return losses | self.region_losses(maps, self.rpn.propose(output, images, self.training), targets)

    # 3.1, 3.3 proposals

    def propose(self, images: Images, prepared: list[Tensor]) -> Proposals:
        return self.rpn.propose(self.rpn(prepared), images, self.many_proposals)

    @property
    def many_proposals(self) -> bool:
        """Whether images get as many proposals as in training, which those of a next step are for, too."""
        return self.training or self.stage.startswith("propose")

    def propose_regions(self, images: Images) -> Proposals:
        return self.propose(images, self.features.prepare(images, self))

    def proposal_settings(self) -> dict[str, Any]:
        return {"size": list(self.config.size), **self.rpn.settings(self.many_proposals)}

    def limit_proposals(self, count: int) -> None:
        self.config.test_post_nms_top_n = count

    # what it tells of itself

    def raw_outputs(self, images: Images) -> list[Tensor]:
        maps = self.features.prepare(images, self)
        output = self.rpn(maps)
        # any regions will do, and proposals need values, which a network on the meta device has not
        boxes = output.anchors[0][:5].expand(len(images), -1, -1)
        return [*output.logits, *output.deltas, *self.head(self.features.pool(maps, boxes))]

    def image_network(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """Return logits, deltas and anchors of each map, then the maps that are pooled."""
        maps = self.maps(pixels, sizes)
        logits, deltas, anchors = self.rpn(maps)
        return (*logits, *deltas, *anchors, *maps[: self.pooled_maps])

    def export_image_parts(self) -> dict[str, ExportPart]:
        of_map = {
            "logits": "(batch, anchors) float32, object or not; a sigmoid makes it a score",
            "deltas": "(batch, anchors, 4) float32, from the anchors, see proposals",
            "anchors": "(anchors, 4) float32, x1, y1, x2, y2 in pixels of the input",
        }
        names = [info.name for info in self.map_info]
        outputs = {f"{kind}_{name}": text for kind, text in of_map.items() for name in names}
        for name in names[: self.pooled_maps]:
            outputs[f"map_{name}"] = "(batch, channels, rows, columns) float32, pooled from, see pooling"
        proposals = {**self.rpn.settings(training=False), "deltas": coder_facts(RPN_CODER)}
        return {"-rpn": self.image_part(outputs, {"proposals": proposals, **self.features.facts()})}

    def use_parts(self, parts: Mapping[str, PartRun]) -> None:
        super().use_parts(parts)
        count = len(self.map_info)

        def predict(images: Images) -> Predictions:
            outputs = [*parts["-rpn"](pixels=images.pixels, sizes=images.sizes)]
            output = RPNOutput(*(outputs[kind * count : (kind + 1) * count] for kind in range(3)))
            proposals = self.rpn.propose(output, images, training=False)
            maps = outputs[3 * count :]
            return replace(self.predict_regions(maps, proposals), features=self.kept_features(images, maps))

        self.predict = predict

    def trace_proposals(
        self, images: Images, prepared: list[Tensor], targets: Targets | None
    ) -> tuple[Proposals, list[Step]]:
        output = self.rpn(prepared)
        steps = self.rpn.trace(prepared, output, images, targets, self.many_proposals)
        return self.rpn.propose(output, images, self.many_proposals), steps
