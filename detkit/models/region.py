"""What the region detectors share: proposals x region features x region head."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from detkit.backbones import Backbone, FeatureInfo
from detkit.config import BackboneConfig
from detkit.errors import UserError
from detkit.models.base import Detector
from detkit.models.freezing import freeze, norm_layers
from detkit.models.shape_checks import tail_width
from detkit.ops import BACKGROUND, BoxCoder, match_regions, pyramid_pool, roi_align, roi_pool, sample
from detkit.structures import Images, Proposals, Targets

CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))  # one over the deltas' standard deviations .1, .1, .2, .2 of py-faster-rcnn
POOLS = ("pool", "align", "align_v1")
REFERENCE_LEVEL = 4  # FPN, equation 1: the level of stride 16 has regions of `canonical` pixels


@dataclass
class RegionConfig:
    """What the region detectors' configs share.

    mean, std: of the input's channels, in units of `divisor` 255. number, fraction: regions drawn an image, and most
    foreground; foreground: least IoU; background: [low, high).
    svd: rank of each fully connected layer that is a pair of thinner ones, as `detkit export` writes, see compress.py.
    """

    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("vgg16"))
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    batch_size_per_image: int = 128
    positive_fraction: float = 0.25
    fg_iou: float = 0.5
    bg_iou: list[float] = field(default_factory=lambda: [0.0, 0.5])
    svd: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.bg_iou) != 2 or not 0 <= self.bg_iou[0] < self.bg_iou[1]:
            raise UserError(f"model.bg_iou: {self.bg_iou} is not [low, high) of IoU")
        if not 0 <= self.positive_fraction <= 1:
            raise UserError(f"model.positive_fraction: {self.positive_fraction} is not between 0 and 1")
        at_least_one(self, "batch_size_per_image")


@dataclass
class PooledConfig(RegionConfig):
    """What the configs of Fast and Faster R-CNN share.

    size: shortest side and largest longest side of the input, pixels. stages, norms: how many first stages of the
    backbone, and whether its batch norms, stay as they are. pool: `pool`, `align`, or `align_v1`, as align was first
    published: half a cell off; pool_size: cells a side.
    """

    size: list[int] = field(default_factory=lambda: [600, 1000])
    freeze_stages: int = 2
    freeze_norms: bool = True
    pool: str = "pool"
    pool_size: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.size) != 2 or not 0 < self.size[0] <= self.size[1]:
            raise UserError(f"model.size: {self.size} is not [shortest side, largest longest side]")
        if self.pool not in POOLS:
            raise UserError(f"model.pool: {self.pool!r} is not one of {', '.join(POOLS)}")
        at_least_one(self, "pool_size")


def at_least_one(config: RegionConfig, *keys: str) -> None:
    """Raise UserError where a value of a model's config is less than 1."""
    for key in keys:
        if getattr(config, key) < 1:
            raise UserError(f"model.{key}: {getattr(config, key)} is less than 1")


@dataclass(frozen=True)
class Sampled:
    """Regions drawn for training.

    boxes: (B, K, 4). target: (B, K) int64, the class, C for background. wanted: (B, K, 4), deltas to learn. valid:
    (B, K) bool, False where an image had too few. owner: (B, K) int64, the object of each, negative for background.
    """

    boxes: Tensor
    target: Tensor
    wanted: Tensor
    valid: Tensor
    owner: Tensor


@torch.no_grad()
def sample_regions(regions: Tensor, valid: Tensor, targets: Targets, classes: int, config: RegionConfig) -> Sampled:
    """Sample regions for training (Fast R-CNN, section 2.3).

    `config.batch_size_per_image` of each image, at most `config.positive_fraction` of them positive.

    regions: (B, R, 4) with valid (B, R) bool; the objects themselves are drawn from, too.
    """
    used = targets.valid & ~targets.ignore
    regions = torch.cat((regions, targets.boxes), 1)
    valid = torch.cat((valid, used), 1)
    low, high = config.bg_iou
    objects = (targets.boxes, targets.valid, targets.ignore)
    match = match_regions(*objects, regions, valid, config.fg_iou, (low, high))
    index, drawn = sample(
        match.index >= 0, match.index == BACKGROUND, config.batch_size_per_image, config.positive_fraction
    )
    found = match.index.gather(1, index)
    inside = drawn & (found >= 0)
    owner = found.clamp(min=0)
    boxes = regions.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    wanted = CODER.encode(targets.boxes.gather(1, owner.unsqueeze(-1).expand(-1, -1, 4)), boxes)
    target = torch.where(inside, targets.labels.gather(1, owner), classes)
    return Sampled(boxes, target, torch.where(inside.unsqueeze(-1), wanted, 0), drawn, found)


class MapFeatures(nn.Module):
    """A fixed-size map of each region, pooled from the image's maps (Fast R-CNN, section 2.1).

    info: the maps, finest first. Of several, each region is pooled from one, by its size (FPN, equation 1): regions of
    `canonical` pixels a side from the map of stride 16, those half as large from that of stride 8, and so on.
    """

    def __init__(self, info: Sequence[FeatureInfo], kind: str, size: int, canonical_scale: float = 224.0) -> None:
        super().__init__()
        self.strides, self.channels = [feature.stride for feature in info], info[0].channels
        self.align, self.aligned, self.size, self.canonical_scale = (
            kind != "pool",
            kind == "align",
            size,
            canonical_scale,
        )

    def forward(self, maps: list[Tensor], boxes: Tensor) -> Tensor:
        """Maps (B, C, H, W), boxes (B, R, 4) in pixels of the input -> (B * R, C, size, size)."""
        if len(maps) == 1:
            return self.pool(maps[0], boxes).flatten(0, 1)
        side = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1).sqrt()
        level = (REFERENCE_LEVEL + torch.log2(side / self.canonical_scale + 1e-6)).floor()
        level = (level - math.log2(self.strides[0])).clamp(0, len(maps) - 1).long()
        pooled = pyramid_pool(maps, boxes, level, self.size, self.strides, self.align, self.aligned)
        return pooled.flatten(0, 1)

    def pool(self, x: Tensor, boxes: Tensor, wanted: Tensor | None = None) -> Tensor:
        """One map -> (B, R, C, size, size), 0 for boxes that are not wanted, (B, R) bool."""
        if self.align:
            return roi_align(x, boxes, self.size, self.strides[0], aligned=self.aligned, valid=wanted)
        return roi_pool(x, boxes, self.size, self.strides[0], wanted)


class RegionHead(nn.Module):
    """The tail of the backbone, then scores of C classes and background, and four deltas a class (section 2.1).

    channels: of the pooled map, size: its side.
    """

    delta_mean: Tensor
    delta_std: Tensor

    def __init__(self, tail: nn.Module, channels: int, size: int, classes: int) -> None:
        super().__init__()
        self.tail, self.classes = tail, classes
        width = tail_width(tail, channels, size)
        self.classifier = nn.Linear(width, classes + 1)
        self.regressor = nn.Linear(width, classes * 4)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.normal_(self.regressor.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)
        nn.init.zeros_(self.regressor.bias)
        # of the deltas of each class, which are learnt normalised; set by DeltaStatistics where they are not fixed
        self.register_buffer("delta_mean", torch.zeros(classes, 4))
        self.register_buffer("delta_std", torch.ones(classes, 4))

    def forward(self, pooled: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """(B * R, C, size, size) -> logits (B, R, classes + 1), background last, and deltas (B, R, classes, 4)."""
        x = self.tail(pooled)
        regions = x.shape[0] // max(batch, 1)
        return (
            self.classifier(x).view(batch, regions, self.classes + 1),
            self.regressor(x).view(batch, regions, self.classes, 4),
        )

    def normalise(self, wanted: Tensor, target: Tensor) -> Tensor:
        """Deltas (B, R, 4) of regions whose class is target (B, R), C for background, as they are learnt."""
        own = target.clamp(max=self.classes - 1)
        return (wanted - self.delta_mean[own]) / self.delta_std[own]

    def decode(self, deltas: Tensor, regions: Tensor) -> Tensor:
        """Learnt deltas (B, R, C, 4) and regions (B, R, 4) -> boxes (B, R, C, 4)."""
        return CODER.decode(deltas * self.delta_std + self.delta_mean, regions.unsqueeze(2))


class RegionDetector(Detector):
    """Keeps frozen layers frozen, see `freeze_layers`, and knows whose layers the head's tail is made of."""

    class_layers = ("head.classifier.", "head.regressor.", "head.delta_", "head.svm", "head.regression_fitted")
    backbone: Backbone  # pyright: ignore[reportIncompatibleVariableOverride]
    head: Any
    _still: list[nn.Module]
    _own_tail = False

    def take_tail(self, size: int) -> nn.Module:
        """Return the backbone's tail for regions' maps of `size` cells a side, see Backbone.tail."""
        own = {id(parameter): parameter for parameter in self.backbone.parameters()}  # kept, lest an id is taken anew
        tail = self.backbone.tail(size)
        self._own_tail = any(id(parameter) in own for parameter in tail.parameters())
        return tail

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        # ResNet's layer4 and VGG's fc6 come with the same pretrained weights, wherever they are put
        yield from self.backbone.parameters()
        if self._own_tail:
            yield from self.head.tail.parameters()

    def freeze_layers(self, stages: int, norms: bool) -> None:
        """Fix the first `stages` of the backbone, and all of its batch norms where `norms` says so."""
        if norms:
            for layer in norm_layers(self):
                layer.requires_grad_(False)
        self._still = norm_layers(self) if norms else []
        if stages:  # which not every backbone has
            self.freeze(*self.backbone.layer_groups()[:stages])  # pyright: ignore[reportCallIssue]

    def freeze(self, *modules: nn.Module) -> None:
        """Fix modules, their batch norms' statistics included."""
        self._still += freeze(modules)

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for layer in getattr(self, "_still", ()):
            layer.eval()
        return self


def proposals_of(images: Images) -> Proposals:
    """Return the proposals that came with a batch; UserError where there are none."""
    if images.proposals is None:
        raise UserError(
            "data.proposals: this detector classifies given regions and has none; make them with "
            "`detkit proposals make CONFIG` and name the store in data.proposals"
        )
    return images.proposals
