"""What the region detectors share: proposals x region features x region head.

Each detector's file shows how it fills the three: where its proposals come from, what is computed of each region, and
which head classifies and moves it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from detkit.backbones import Backbone
from detkit.backbones.describe import count_flops
from detkit.config import BackboneConfig, Section, one_of, within
from detkit.errors import UserError
from detkit.models.base import Detector, Flops
from detkit.models.parts import ExportPart, Function, PartRun, coder_facts, regions_input, resized_images
from detkit.models.region_features import POOLS, CropFeatures, RegionFeatures
from detkit.models.trace import PooledStep, ProposalStep, RegressionStep, SampleStep, Step, Trace
from detkit.ops import BACKGROUND, BoxCoder, gather_boxes, match_regions, sample
from detkit.structures import Images, Predictions, Proposals, Targets


@dataclass
class RegionConfig(Section):
    """What the region detectors' configs share."""

    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("vgg16"))
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the input's channels, RGB, in units of 255."""
    std: tuple[float, float, float] = within("(0, inf)", (0.229, 0.224, 0.225))
    """Of the input's channels, RGB, in units of 255."""
    batch_size_per_image: int = within("[1, inf)", 128)
    """Regions of an image that training samples."""
    positive_fraction: float = within("[0, 1]", 0.25)
    """Of these, most that are positive."""
    fg_iou: float = within("[0, 1]", 0.5)
    """IoU with an object from which a region is positive."""
    bg_iou: list[float] = field(default_factory=lambda: [0.0, 0.5])
    """IoU [low, high) of the regions that are background."""
    svd: dict[str, int] = field(default_factory=dict)
    """Rank of each fully connected layer that is a pair of thinner ones, as `detkit export --svd` writes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.bg_iou) != 2 or not 0 <= self.bg_iou[0] < self.bg_iou[1]:
            raise UserError(f"model.bg_iou: {self.bg_iou} is not [low, high) of IoU")


@dataclass
class MapConfig(RegionConfig):
    """What the configs of detectors share that pool regions from an image's maps."""

    size: list[int] = within("[1, 10000]", [600, 1000])
    """Shortest side and largest longest side of the input, pixels."""
    freeze_stages: int = within("[0, inf)", 2)
    """How many first layer groups of the backbone stay as they are."""
    freeze_norms: bool = True
    """Whether the backbone's batch norms stay as they are."""
    pool_size: int = within("[1, 100]", 7)
    """Cells a side of a pooled region."""
    geometry: str = "backbone"
    """Where the cells of the map are, for the pooling and for anchors: where the `backbone` has them, or as `published`
    for all networks alike: for RoI pooling around multiples of the stride, which is 7.5 pixels off in VGG16, for
    RoIAlign and anchors half a cell further, which is 7.5 pixels off in ZF and ResNet. Above a neck as published."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) != 2 or not 0 < self.size[0] <= self.size[1]:
            raise UserError(f"model.size: {self.size} is not [shortest side, largest longest side]")
        one_of("model.geometry", self.geometry, ("backbone", "published"))

    @property
    def cells(self) -> str:
        """The `pool` of PooledConfig that takes cells to lie where this pooling does: each spans a stride's pixels."""
        return "align"


@dataclass
class PooledConfig(MapConfig):
    """What the configs of Fast and Faster R-CNN share."""

    pool: str = "pool"
    """`pool`: RoI pooling; `align`: RoIAlign; `align_v1`: as it was first published, half a cell off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model.pool", self.pool, POOLS)

    @property
    def cells(self) -> str:
        return self.pool


def cell_offsets(config: MapConfig, backbone: Backbone) -> tuple[float, float]:
    """Return how far a single map's cells lie right of and below where they are published to be.

    In pixels, of the pooling and of anchors; 0 where the config says `published`.
    """
    if config.geometry == "published":
        return 0.0, 0.0
    half = backbone.info[-1].stride / 2
    pooled = {"pool": 0.5, "align": half, "align_v1": 0.0}[config.cells]
    return backbone.first_cell_centre - pooled, backbone.first_cell_centre - half


@dataclass(frozen=True)
class SampledRegions:
    """Regions sampled for training.

    boxes: (B, K, 4). labels: (B, K) int64, the class, C for background. gt_boxes: (B, K, 4), the matched object's.
    matched_gt_index: (B, K) int64, the object of each, negative for background. valid: (B, K) bool, False where an
    image had too few.
    """

    boxes: Tensor
    labels: Tensor
    gt_boxes: Tensor
    matched_gt_index: Tensor
    valid: Tensor

    def target_deltas(self, coder: BoxCoder) -> Tensor:
        """Return the deltas (B, K, 4) that take each positive region to its object, 0 for background."""
        positive = self.valid & (self.matched_gt_index >= 0)
        return torch.where(positive.unsqueeze(-1), coder.encode(self.gt_boxes, self.boxes), 0)


def with_objects(proposals: Proposals, targets: Targets) -> Proposals:
    """Return the proposals, and behind them the objects themselves but for those that are not trained on."""
    boxes = torch.cat((proposals.boxes, targets.boxes), 1)
    return Proposals(boxes, torch.cat((proposals.valid, targets.valid & ~targets.ignore), 1))


@torch.no_grad()
def label_regions(proposals: Proposals, targets: Targets, classes: int, config: RegionConfig) -> SampledRegions:
    """Tell of all proposals, and of the objects themselves, what training would learn of each.

    valid: False for what overlaps neither an object enough nor `config.bg_iou`.
    """
    regions, (low, high) = with_objects(proposals, targets), config.bg_iou
    objects = (targets.boxes, targets.valid, targets.ignore)
    match = match_regions(*objects, regions.boxes, regions.valid, config.fg_iou, (low, high))
    matched, positive = match.index.clamp(min=0), match.index >= 0
    labels = targets.labels.gather(1, matched) if targets.labels.shape[1] else matched
    labels = torch.where(positive, labels, classes)
    valid = positive | (match.index == BACKGROUND)
    return SampledRegions(regions.boxes, labels, gather_boxes(targets.boxes, matched), match.index, valid)


@torch.no_grad()
def sample_regions(proposals: Proposals, targets: Targets, classes: int, config: RegionConfig) -> SampledRegions:
    """Sample regions for training (Fast R-CNN, section 2.3).

    `config.batch_size_per_image` of each image, at most `config.positive_fraction` of them positive. The objects
    themselves are among the regions that are sampled from.
    """
    regions = label_regions(proposals, targets, classes, config)
    positive = regions.matched_gt_index >= 0
    negative = regions.valid & ~positive
    index, sampled = sample(positive, negative, config.batch_size_per_image, config.positive_fraction)
    return SampledRegions(
        gather_boxes(regions.boxes, index),
        torch.where(sampled, regions.labels.gather(1, index), classes),
        gather_boxes(regions.gt_boxes, index),
        regions.matched_gt_index.gather(1, index),
        sampled,
    )


class Head(Protocol):
    """What scores and moves regions, of the features that `RegionFeatures` gives of each, (B, R, ...)."""

    coder: BoxCoder

    def logits(self, pooled: Tensor) -> Tensor:
        """Return the logits (B, R, C + 1), background last, that training's softmax reads."""
        ...

    def losses(self, pooled: Tensor, sampled: SampledRegions) -> dict[str, Tensor]:
        """Return the losses of sampled regions."""
        ...

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B, R, C), and deltas (B, R, C, 4) for `coder`, or (B, R, 1, 4) for all classes alike."""
        ...

    def raw(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """(N, ...) -> what `predict` makes its scores and deltas of, and what is exported."""
        ...

    def outputs(self) -> dict[str, str]:
        """Return what the outputs of `raw` are, by name."""
        ...


class RegionDetector(Detector):
    """Proposals x region features x region head. Losses and predictions are written once, here.

    features: see RegionFeatures. head: see Head.
    """

    kind: ClassVar[str] = "region"
    takes_proposals: ClassVar[bool] = True
    compiled: ClassVar[str | None] = "backbone_maps"
    supports_svd: ClassVar[bool] = True
    class_layers: ClassVar[tuple[str, ...]] = (
        *("head.classifier.", "head.regressor.", "head.delta_", "head.svm", "head.regression_fitted"),
    )
    features: RegionFeatures
    head: Any  # a Head, which is an nn.Module
    _tail_of_backbone = False

    # network

    def backbone_maps(self, x: Tensor) -> list[Tensor]:
        """Normalised pixels -> the maps that regions are pooled from, finest first; by default the backbone's last."""
        return [self.backbone(x)[self.backbone.info[-1].name]]

    def maps(self, pixels: Tensor, sizes: Tensor) -> list[Tensor]:
        """Pixels (B, 3, H, W), 0 to 255, of images of `sizes` (B, 2) -> `backbone_maps`."""
        return self.backbone_maps(self.normalise(pixels, sizes))

    def propose(self, images: Images, prepared: Any) -> Proposals:
        """Return the regions that are classified, in pixels of the input; by default those that came with the images.

        prepared: of `features.prepare`.
        """
        return stored_proposals(images)

    # losses and predictions

    def losses(self, images: Images, targets: Targets) -> dict[str, Tensor]:
        prepared = self.features.prepare(images, self)
        return self.region_losses(prepared, self.propose(images, prepared), targets)

    def region_losses(self, prepared: Any, proposals: Proposals, targets: Targets) -> dict[str, Tensor]:
        """Return the head's losses of regions sampled from the proposals, which are constants."""
        return self.sampled_losses(
            prepared, sample_regions(proposals, targets, len(self.classes), self.config), targets
        )

    def sampled_losses(self, prepared: Any, sampled: SampledRegions, targets: Targets) -> dict[str, Tensor]:
        """Return the losses of sampled regions."""
        return self.head.losses(self.features.pool(prepared, sampled.boxes), sampled)

    def predict(self, images: Images) -> Predictions:
        prepared = self.features.prepare(images, self)
        predictions = self.predict_regions(prepared, self.propose(images, prepared))
        return replace(predictions, features=self.kept_features(images, prepared))

    def kept_features(self, images: Images, prepared: Any) -> Any:
        """Return what `refine` reads of these images; by default nothing.

        prepared: of `features.prepare`.
        """
        return None

    def predict_regions(
        self, prepared: Any, proposals: Proposals, watch: Callable[[Tensor], None] | None = None
    ) -> Predictions:
        """Scores and boxes of every class for each proposal. watch: is called with the features of each chunk."""
        scores, boxes = [], []
        # chunks: there may be many regions, and what one needs on its way is large, of R-CNN's a whole network's maps
        for regions in self.chunks(proposals.boxes):
            pooled = self.features.pool(prepared, regions)
            if watch is not None:
                watch(pooled)
            region_scores, deltas = self.head.predict(pooled)
            del pooled  # before the next chunk takes its memory
            scores.append(region_scores)
            boxes.append(self.head.coder.decode(deltas, regions.unsqueeze(2)))
        # padding is detected as nothing
        valid = proposals.valid.unsqueeze(-1)
        # one set of deltas for all classes is one box
        return Predictions(torch.cat(boxes, 1).squeeze(2), torch.where(valid, torch.cat(scores, 1), -torch.inf))

    def follow(self, images: Images, row: int) -> Callable[[Images], Predictions]:
        with torch.no_grad():
            region = self.propose(images, self.features.prepare(images, self)).boxes[:, row : row + 1]

        def predict(changed: Images) -> Predictions:
            regions = region.expand(len(changed), -1, -1)
            valid = torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
            return self.predict_regions(self.features.prepare(changed, self), Proposals(regions, valid))

        return predict

    def chunks(self, boxes: Tensor) -> tuple[Tensor, ...]:
        """Cut regions (B, R, 4) into as many as fit in memory at once."""
        return boxes.split(self.features.chunk_size(len(boxes)), 1)

    def extract_features(self, images: Images, boxes: Tensor, *, tail: bool) -> Tensor:
        """Return the features (B, R, D) float32 of boxes (B, R, 4), before or after the tail."""
        prepared = self.features.prepare(images, self)
        chunks = []
        for regions in self.chunks(boxes):
            pooled = self.features.pool(prepared, regions).flatten(0, 1)
            features = self.head.tail(pooled) if tail else pooled.flatten(1)
            chunks.append(features.float().unflatten(0, regions.shape[:2]))
        return torch.cat(chunks, 1)

    # layers

    def take_tail(self, size: int) -> nn.Module:
        """Return the backbone's tail for regions' maps of `size` cells a side, see Backbone.tail."""
        before = set(self.backbone.parameters())
        tail = self.backbone.tail(size)
        self._tail_of_backbone = not before.isdisjoint(tail.parameters())
        return tail

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        # ResNet's layer4 and VGG's fc6 come with the same pretrained weights, wherever they are put
        yield from self.backbone.parameters()
        if self._tail_of_backbone:
            yield from self.head.tail.parameters()

    # what it tells of itself

    def raw_outputs(self, images: Images) -> list[Tensor]:
        prepared = self.features.prepare(images, self)
        pooled = self.features.pool(prepared, self.propose(images, prepared).boxes)
        return [self.head.logits(pooled), self.head.predict(pooled)[1]]

    def flops(self, height: int, width: int) -> Flops | None:
        device = next(self.parameters()).device
        image = 0
        for size in self.features.input_sizes(height, width, self.input):
            pixels, sizes = torch.empty(1, 3, *size, device=device), torch.tensor([size], device=device)
            image += count_flops(partial(self.image_network, pixels, sizes))
        pooled = torch.empty(1, 1, *self.features.shape, device=device)
        region = count_flops(lambda: self.head.predict(pooled))
        if isinstance(self.features, CropFeatures):
            crop = torch.empty(1, 3, self.features.side, self.features.side, device=device)
            region += count_flops(lambda: self.backbone(crop))
        return Flops(image, region)

    def image_network(self, pixels: Tensor, sizes: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Pixels (B, 3, H, W), 0 to 255, of images of `sizes` (B, 2) -> what is computed once an image, for export."""
        return self.maps(pixels, sizes)[0]

    def export_parts(self) -> dict[str, ExportPart]:
        outputs = self.head.outputs()
        facts = {"coder": coder_facts(self.head.coder)}
        if isinstance(self.features, CropFeatures):
            side = self.features.side
            text = "regions warped to RGB squares, 0 to 255, see crops"
            inputs = {"crops": regions_input((3, side, side), text, 255)}
            of_crops, raw = self.features.of_crops, self.head.raw
            network = Function(self, lambda crops: raw(of_crops(crops, self)))
            return {"": ExportPart(network, inputs, outputs, facts | self.features.facts())}
        pooled = regions_input(self.features.shape, "pooled from the map, see pooling")
        head_part = ExportPart(Function(self.head, self.head.raw), {"pooled": pooled}, outputs, facts)
        return {**self.export_image_parts(), "-head": head_part}

    def export_image_parts(self) -> dict[str, ExportPart]:
        """Return the part that is computed once an image."""
        channels = self.backbone.info[-1].channels
        outputs = {"map": f"(batch, {channels}, rows, columns) float32, pooled from, see pooling"}
        return {"-map": self.image_part(outputs, self.features.facts())}

    def image_part(self, outputs: dict[str, str], facts: dict[str, Any]) -> ExportPart:
        return ExportPart(Function(self, self.image_network), resized_images(self.input), outputs, facts)

    def use_parts(self, parts: Mapping[str, PartRun]) -> None:
        if isinstance(self.features, CropFeatures):
            self.features.of_crops = lambda crops, network: crops
            self.head.raw = lambda crops: parts[""](crops=crops)
        else:
            self.maps = lambda pixels, sizes: [*parts["-map"](pixels=pixels, sizes=sizes)]
            self.head.raw = lambda pooled: parts["-head"](pooled=pooled)

    def trace(self, images: Images, targets: Targets | None = None) -> Trace:
        prepared = self.features.prepare(images, self)
        proposals, steps = self.trace_proposals(images, prepared, targets)
        # all of a region's channels would be too many to keep and to see
        means: list[Tensor] = []
        predictions = self.predict_regions(prepared, proposals, lambda pooled: means.append(pooled.float().mean(2)))
        if targets is not None:
            steps += self.learned_steps(prepared, proposals, targets)

        def crop(index: Tensor) -> Tensor | None:
            crops = self.features.crops(prepared, proposals.boxes[:, index])
            return None if crops is None else crops[0]

        predictions = replace(predictions, features=self.kept_features(images, prepared))
        regions, scores = proposals.boxes[0], predictions.scores[0].amax(1)
        pooled = self.features.squares(torch.cat(means, 1)[0])
        scales = self.features.short_sides(proposals.boxes, images.sizes)
        steps.append(PooledStep(regions, scores, pooled, None if scales is None else scales[0], crop))
        return Trace(predictions, [*steps, RegressionStep(regions)])

    def trace_proposals(self, images: Images, prepared: Any, targets: Targets | None) -> tuple[Proposals, list[Step]]:
        """Return the regions that are classified, and the steps that led to them."""
        proposals = self.propose(images, prepared)
        return proposals, [ProposalStep(proposals.boxes[0][proposals.valid[0]], self.takes_proposals)]

    def learned_steps(self, prepared: Any, proposals: Proposals, targets: Targets) -> list[Step]:
        """Return what training would learn of one image, see `sample_step`."""
        return [self.sample_step(prepared, proposals, targets)]

    def sample_step(self, prepared: Any, proposals: Proposals, targets: Targets) -> SampleStep:
        """The regions of one image that training would learn from."""
        sampled = sample_regions(proposals, targets, len(self.classes), self.config)
        valid = sampled.valid[0]
        return SampleStep(
            sampled.boxes[0][valid],
            sampled.matched_gt_index[0][valid],
            name="regions",
            title="Sampled regions (training)",
            text="What training would learn from this image: {samples} regions are sampled at random, {positive} that "
            "overlap an object enough, with the object's class, and {negative} of background.",
            legend=("region of", "background"),
        )


def stored_proposals(images: Images) -> Proposals:
    """Return the proposals that came with a batch; UserError where there are none."""
    if images.proposals is None:
        raise UserError(
            "data.proposals: this detector classifies given regions and has none; make them with "
            "`detkit proposals make CONFIG` and name the store in data.proposals"
        )
    return images.proposals
