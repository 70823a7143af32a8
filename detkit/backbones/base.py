"""What a backbone is."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class FeatureInfo(NamedTuple):
    """One feature map: its name, its channels, and how many input pixels one of its cells spans."""

    name: str
    channels: int
    stride: int


class Backbone(nn.Module):
    """A network that turns normalised images (B, 3, H, W) into named feature maps, finest first.

    info: one entry for each map of `forward`, in its order.
    imagenet: torchvision's name of the ImageNet weights, None where there are none.
    large: maps of much larger values than the deeper ones, which SSD L2-normalises.
    """

    info: tuple[FeatureInfo, ...]
    imagenet: ClassVar[str | None] = None
    large: ClassVar[tuple[str, ...]] = ()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of a published classifier (torchvision's keys) to this module's keys."""
        return state
