"""Features of regions: what a region head reads of each, (B, R, ...).

The history of the R-CNN family is here: a crop of the image for each region (R-CNN), the maps of the image at several
scales (SPPNet), one map that all regions share (Fast R-CNN), a pyramid of maps (FPN), maps that are each for one part
of a region (R-FCN).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, max_pool2d

from detkit.backbones import FeatureInfo
from detkit.ops import (
    crop_warp,
    crops_per_chunk,
    psroi_pool,
    pyramid_pool,
    rescale,
    roi_align,
    roi_pool,
    short_side_scale,
    spp_pool,
    spp_windows,
    sppnet_scale,
)
from detkit.structures import Images, InputSpec

POOLS = ("pool", "align", "align_v1")
CHUNK_BYTES = 512 << 20  # of regions' features that are computed at once, however many regions an image has
REFERENCE_LEVEL = 4  # FPN, equation 1: regions of `canonical_scale` pixels belong to the level of stride 16


class ImageNetwork(Protocol):
    """What of a detector sees whole images, or crops of them; see RegionDetector."""

    training: bool

    def normalise(self, pixels: Tensor, sizes: Tensor | None = None) -> Tensor: ...
    def backbone_maps(self, x: Tensor) -> list[Tensor]: ...
    def maps(self, pixels: Tensor, sizes: Tensor) -> list[Tensor]: ...


@dataclass(frozen=True)
class RoIPooling:
    """RoI pooling (Fast R-CNN, section 2.1) or RoIAlign of one map to size x size cells.

    kind: `pool`, `align`, or `align_v1`, as RoIAlign was first published: half a cell off. offset: how many pixels the
    map's cells lie right of and below where these take them to be.
    """

    kind: str
    size: int
    stride: float
    offset: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what a channel of a region becomes."""
        return (self.size, self.size)

    def __call__(self, x: Tensor, boxes: Tensor) -> Tensor:
        """(B, C, H, W), boxes (B, R, 4), or (K, 5), in pixels of the input -> (B, R, C, size, size), or (K, ...)."""
        boxes = torch.cat((boxes[..., :-4], boxes[..., -4:] - self.offset), -1)
        if self.kind == "pool":
            return roi_pool(x, boxes, self.size, self.stride)
        return roi_align(x, boxes, self.size, self.stride, aligned=self.kind == "align")

    def facts(self) -> dict[str, Any]:
        """Return what describes the pooling in the metadata of an exported network."""
        moved = {"offset": self.offset} if self.offset else {}
        return {"kind": self.kind, "size": self.size, "strides": [self.stride], **moved}


@dataclass(frozen=True)
class SpatialPyramidPooling:
    """SPPNet, section 2.2 and 4.1: the maxima in the bins of a pyramid. See `spp_pool`."""

    levels: tuple[int, ...]
    stride: float
    centre: float
    shrink: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(level**2 for level in self.levels),)

    def __call__(self, x: Tensor, boxes: Tensor) -> Tensor:
        """(B, C, H, W), boxes (B, R, 4), or (K, 5), in pixels of the input -> (B, R, C, bins), or (K, C, bins)."""
        return spp_pool(x, boxes, self.levels, self.stride, self.centre, self.shrink)

    def windows(self, boxes: Tensor) -> Tensor:
        """Return the cells (..., 4) that boxes (..., 4) are pooled from."""
        return spp_windows(boxes, self.stride, self.centre, self.shrink)

    def facts(self) -> dict[str, Any]:
        return {"pyramid": list(self.levels), "stride": self.stride, "centre": self.centre}


class RegionFeatures:
    """What a region head reads of each region.

    shape: of one region's features. scales: the short sides that images are resized to; empty where they have one size.
    """

    shape: tuple[int, ...]
    scales: tuple[int, ...] = ()

    def prepare(self, images: Images, network: ImageNetwork) -> Any:
        """Compute what all regions of the images share, for `pool`."""
        raise NotImplementedError(f"{type(self).__name__}.prepare")

    def pool(self, prepared: Any, boxes: Tensor) -> Tensor:
        """Regions (B, R, 4) in pixels of the images -> (B, R, *shape)."""
        raise NotImplementedError(f"{type(self).__name__}.pool")

    def chunk_size(self, images: int) -> int:
        """Return how many regions of each of so many images are pooled at once."""
        return max(1, CHUNK_BYTES // (4 * math.prod(self.shape)) // max(1, images))

    def input_sizes(self, height: int, width: int, spec: InputSpec) -> list[tuple[int, int]]:
        """Return the sizes at which the whole image passes the backbone."""
        return [spec.fit(height, width)]

    def facts(self) -> dict[str, Any]:
        """Return how regions are pooled, for the metadata of an exported network."""
        raise NotImplementedError(f"{type(self).__name__}.facts")

    def distinct(self, boxes: Tensor, sizes: Tensor, valid: Tensor) -> Tensor:
        """Return which of the valid regions (B, R) of images of `sizes` (B, 2) are the first with their features."""
        return valid

    def squares(self, means: Tensor) -> list[Tensor]:
        """Means over channels (R, ...) -> the levels of pooling, (R, n, n) each, for people to see."""
        return [means]

    def short_sides(self, boxes: Tensor, sizes: Tensor) -> Tensor | None:
        """Return the short side (B, R) of the image that each region is pooled at; None where there is one."""
        if not self.scales:
            return None
        return torch.tensor(self.scales, device=boxes.device)[sppnet_scale(boxes, sizes, self.scales)]

    def crops(self, prepared: Any, boxes: Tensor) -> Tensor | None:
        """Return what the network sees of regions (B, R, 4), (B, R, 3, side, side), 0 to 255; None: the image."""
        return None


class MapFeatures(RegionFeatures):
    """A fixed-size map of each region, pooled from the image's maps (Fast R-CNN, section 2.1).

    maps: finest first. Of several, each region is pooled from one, by its size (FPN, equation 1): regions of
    `canonical_scale` pixels a side from the map of stride 16, those half as large from that of stride 8, and so on.
    offset: of the cells of a single map, see RoIPooling.
    """

    def __init__(
        self, maps: Sequence[FeatureInfo], kind: str, size: int, canonical_scale: float = 224.0, offset: float = 0.0
    ) -> None:
        self.strides = [info.stride for info in maps]
        self.pooling, self.canonical_scale = RoIPooling(kind, size, self.strides[0], offset), canonical_scale
        self.shape = (maps[0].channels, size, size)

    def prepare(self, images: Images, network: ImageNetwork) -> list[Tensor]:
        return network.maps(images.pixels, images.sizes)

    def pool(self, prepared: list[Tensor], boxes: Tensor) -> Tensor:
        maps = prepared[: len(self.strides)]
        if len(maps) == 1:
            return self.pooling(maps[0], boxes)
        side = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1).sqrt()
        level = (REFERENCE_LEVEL + torch.log2(side / self.canonical_scale + 1e-6)).floor()
        level = (level - math.log2(self.strides[0])).clamp(0, len(maps) - 1).long()
        kind, size = self.pooling.kind, self.pooling.size
        return pyramid_pool(maps, boxes, level, size, self.strides, align=kind != "pool", aligned=kind == "align")

    def facts(self) -> dict[str, Any]:
        # of several maps a region's is chosen by its size
        chosen = {"canonical_scale": self.canonical_scale} if len(self.strides) > 1 else {}
        return {"pooling": {**self.pooling.facts(), "strides": self.strides, **chosen}}


class PositionSensitive(RegionFeatures):
    """What the k x k bins of a region find each in a map of its own (R-FCN, section 2.2).

    Of the network's maps the last two are of scores and of boxes, size ** 2 for each of their channels. channels: of
    both together; size: k. offset: how many pixels the cells lie right of and below where they are taken to be.
    """

    def __init__(self, channels: int, size: int, stride: float, offset: float = 0.0) -> None:
        self.shape = (channels, size, size)
        self.stride, self.offset = stride, offset

    def prepare(self, images: Images, network: ImageNetwork) -> list[Tensor]:
        return network.maps(images.pixels, images.sizes)

    def pool(self, prepared: list[Tensor], boxes: Tensor) -> Tensor:
        boxes = boxes - self.offset
        return torch.cat([psroi_pool(x, boxes, self.shape[1], self.stride) for x in prepared[-2:]], 2)

    def facts(self) -> dict[str, Any]:
        moved = {"offset": self.offset} if self.offset else {}
        return {"pooling": {"kind": "psroi", "size": self.shape[1], "strides": [self.stride], **moved}}


class ImagePyramid(NamedTuple):
    """maps: of each scale its map (B, C, h, w), and its factor for each image, (B,); sizes: (B, 2) of the images;
    any_scale: whether regions are pooled at random scales, and not at that which suits each."""

    maps: list[tuple[Tensor, Tensor]]
    sizes: Tensor
    any_scale: bool = False


class PyramidFeatures(RegionFeatures):
    """Features of each region from the image at the scale that suits the region's size (SPPNet, section 4.1).

    Images become several sizes, and each region is pooled where its area is closest to 224 x 224 pixels. pooling: of
    one map. scales: short sides, pixels; longest: most pixels of the long side. random_scale: whether training draws
    one scale for each image (Fast R-CNN, section 2.4). random_scales: whether it draws one for each region (SPPNet's
    code).
    """

    def __init__(
        self,
        map_info: FeatureInfo,
        pooling: RoIPooling | SpatialPyramidPooling,
        scales: Sequence[int],
        longest: float = float("inf"),
        random_scale: bool = False,
        random_scales: bool = False,
    ) -> None:
        self.pooling, self.longest = pooling, longest
        self.random_scale, self.random_scales = random_scale, random_scales
        self.scales = tuple(scales)
        self.shape = (map_info.channels, *pooling.shape)

    def prepare(self, images: Images, network: ImageNetwork) -> ImagePyramid:
        scales: list[float] | list[Tensor] = [float(short) for short in self.scales]
        if self.random_scale and network.training:
            device = images.pixels.device
            sampled = torch.randint(len(scales), (len(images),), device=device)
            scales = [torch.tensor(scales, device=device)[sampled]]
        pixels, sizes = images.pixels.float(), images.sizes
        maps = []
        for short in scales:  # no batch: the levels of a pyramid differ in size
            factor = short_side_scale(sizes, short, self.longest)
            maps.append((network.maps(*rescale(pixels, sizes, factor))[0], factor))
        return ImagePyramid(maps, sizes, self.random_scales and network.training)

    def pool(self, prepared: ImagePyramid, boxes: Tensor) -> Tensor:
        if len(prepared.maps) == 1:
            x, factor = prepared.maps[0]
            return self.pooling(x, boxes * factor.view(-1, 1, 1))
        if prepared.any_scale:
            level = torch.randint(len(prepared.maps), boxes.shape[:2], device=boxes.device)
        else:
            level = sppnet_scale(boxes, prepared.sizes, self.scales)
        dtype = torch.promote_types(prepared.maps[0][0].dtype, torch.float32)
        pooled = boxes.new_zeros(*boxes.shape[:2], *self.shape, dtype=dtype)
        for number, (x, factor) in enumerate(prepared.maps):
            # A host sync a scale: pooling all regions at all scales would need none, but costs as many times the work.
            image, row = (level == number).nonzero(as_tuple=True)
            rois = torch.cat((image.unsqueeze(1), boxes[image, row] * factor[image].unsqueeze(1)), 1)
            pooled[image, row] = self.pooling(x, rois)
        return pooled

    def distinct(self, boxes: Tensor, sizes: Tensor, valid: Tensor) -> Tensor:
        if not isinstance(self.pooling, SpatialPyramidPooling):
            return valid
        level = sppnet_scale(boxes, sizes, self.scales)
        short = torch.tensor(self.scales, dtype=torch.float32, device=boxes.device)[level]
        factor = short_side_scale(sizes, short.T, self.longest).T  # (B, R): of each region's scale
        windows = self.pooling.windows(boxes * factor.unsqueeze(-1))
        image = torch.arange(len(boxes), device=boxes.device).unsqueeze(1).expand_as(level)
        keys = torch.cat((torch.stack((image, level), -1), windows), -1)[valid].long()
        # of each group of equal keys the first row (host sync: a pass over the images has many)
        _, group = keys.unique(dim=0, return_inverse=True)
        row = torch.arange(len(keys), device=keys.device)
        first = row.new_full((len(keys),), len(keys)).scatter_reduce(0, group, row, "amin")
        return valid.masked_scatter(valid, first[group] == row)

    def chunk_size(self, images: int) -> int:
        # spp_pool takes some times the memory of its result
        spatial = isinstance(self.pooling, SpatialPyramidPooling)
        return max(1, 4096 // max(1, images)) if spatial else super().chunk_size(images)

    def input_sizes(self, height: int, width: int, spec: InputSpec) -> list[tuple[int, int]]:
        longest = 10_000 if math.isinf(self.longest) else round(self.longest)
        return [InputSpec((short, longest), resize="shortest").fit(height, width) for short in self.scales]

    def facts(self) -> dict[str, Any]:
        longest = {} if math.isinf(self.longest) else {"longest": self.longest}
        return {"pooling": self.pooling.facts(), "scales": list(self.scales), **longest}

    def squares(self, means: Tensor) -> list[Tensor]:
        if not isinstance(self.pooling, SpatialPyramidPooling):
            return [means]
        bins = means.split([level**2 for level in self.pooling.levels], 1)
        return [part.unflatten(1, (level, level)) for part, level in zip(bins, self.pooling.levels)]


@dataclass
class CropFeatures(RegionFeatures):
    """Each region cut out of the image, warped to a square and sent through the network (R-CNN, section 2.1).

    channels: of the network's map. side: of the crop, pixels; context: how many of them show the region's surroundings.
    mean: of the input's channels, 0 to 255, which what lies outside the image becomes. pool_size: cells a side of what
    the backbone's tail reads. chunk_bytes: of crops that pass the network at once.
    """

    channels: int
    side: int
    context: int
    mean: list[float]
    pool_size: int
    chunk_bytes: int = 32 << 20  # the network's maps take some twenty times as much

    def __post_init__(self) -> None:
        self.shape = (self.channels, self.pool_size, self.pool_size)

    def prepare(self, images: Images, network: ImageNetwork) -> tuple[Images, ImageNetwork]:
        return images, network

    def pool(self, prepared: tuple[Images, ImageNetwork], boxes: Tensor) -> Tensor:
        crops = self.crops(prepared, boxes).flatten(0, 1)
        return self.of_crops(crops, prepared[1]).unflatten(0, boxes.shape[:2])

    def of_crops(self, crops: Tensor, network: ImageNetwork) -> Tensor:
        """Warped regions (N, 3, side, side), 0 to 255 -> pool5 (N, C, pool_size, pool_size)."""
        crops = network.normalise(crops).contiguous(memory_format=torch.channels_last)
        return adaptive_pool(network.backbone_maps(crops)[0], self.pool_size)

    def crops(self, prepared: tuple[Images, ImageNetwork], boxes: Tensor) -> Tensor:
        images, _ = prepared
        return crop_warp(images.pixels, boxes, self.side, self.context, self.mean, images.sizes)

    def chunk_size(self, images: int) -> int:
        return max(1, crops_per_chunk(self.side, self.chunk_bytes) // max(1, images))

    def input_sizes(self, height: int, width: int, spec: InputSpec) -> list[tuple[int, int]]:
        return []

    def facts(self) -> dict[str, Any]:
        return {"crops": {"side": self.side, "context": self.context}}


def adaptive_pool(x: Tensor, size: int) -> Tensor:
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
