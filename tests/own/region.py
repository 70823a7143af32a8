"""A region detector of one's own: the windows of a grid in place of proposals, and Fast R-CNN's features and head."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from detkit.backbones import create_backbone
from detkit.config import BackboneConfig
from detkit.models import MODELS, RegionDetector
from detkit.models.region import PooledConfig, cell_offsets
from detkit.models.region_features import MapFeatures
from detkit.models.region_head import RegionHead
from detkit.ops import clip
from detkit.structures import Images, InputSpec, Proposals


@dataclass
class WindowsConfig(PooledConfig):
    name: str = "windows"
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig("tiny"))
    freeze_stages: int = 0
    sides: list[float] = field(default_factory=lambda: [48.0, 96.0])
    """Of the windows, pixels of the input; neighbours overlap by half."""


@MODELS.register("windows")
class Windows(RegionDetector):
    config_type = WindowsConfig
    takes_proposals: ClassVar[bool] = False

    def __init__(self, config: WindowsConfig, classes: tuple[str, ...]) -> None:
        shortest, longest = config.size
        super().__init__(config, classes, InputSpec((shortest, longest), config.mean, config.std, resize="shortest"))
        self.backbone = create_backbone(config.backbone, tail=True)
        tail = self.take_tail(config.pool_size)
        last = self.backbone.info[-1]
        offset, _ = cell_offsets(config, self.backbone)
        self.features = MapFeatures([last], config.pool, config.pool_size, offset=offset)
        self.head = RegionHead(tail, last.channels, config.pool_size, len(classes))
        self.freeze_layers(config.freeze_stages, config.freeze_norms)

    def propose(self, images: Images, prepared: Any) -> Proposals:
        """Windows of all sides over the padded batch; those outside of an image are padding."""
        height, width = images.pixels.shape[-2:]
        windows = torch.cat([self.grid(height, width, side) for side in self.config.sides])
        windows = windows.to(images.sizes.device).expand(len(images), -1, -1)
        valid = (windows[..., :2] < images.sizes.flip(1).unsqueeze(1)).all(-1)
        return Proposals(clip(windows, images.sizes), valid)

    @staticmethod
    def grid(height: int, width: int, side: float) -> Tensor:
        """Return (R, 4) squares of `side` pixels, half a side apart."""
        y, x = (torch.arange(0, limit, side / 2) for limit in (height, width))
        corner = torch.cartesian_prod(x, y)
        return torch.cat((corner, corner + side), 1)
