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
    darknet: whether its layers are registered in the order of darknet's `.weights` files.
    region: the map that single-map region detectors pool from. width: of `fully_connected` layers above it.
    """

    info: tuple[FeatureInfo, ...]
    imagenet: ClassVar[str | None] = None
    large: ClassVar[tuple[str, ...]] = ()
    darknet: ClassVar[bool] = False
    region: ClassVar[str] = "c4"
    width: ClassVar[int] = 1024

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def stages(self) -> list[nn.Module]:
        """Return the layers in order, cut where the maps become smaller, so that the first of them can be frozen."""
        raise NotImplementedError(f"{type(self).__name__} has no stages")

    def cut(self, name: str) -> None:
        """Leave out the layers behind the map `name`: nothing would train them."""
        last = [info.name for info in self.info].index(name)
        self.info = self.info[: last + 1]

    def tail(self, size: int) -> nn.Module:
        """Return a network from a region's pooled map (R, C, size, size) to its features (R, D).

        It is what follows the map `region` in the network, taken out of this one; where nothing does, two fully
        connected layers.
        """
        self.cut(self.region)
        return fully_connected(self.info[-1].channels, size, self.width)

    def drop_tail(self) -> None:
        """Leave out the layers that only `tail` uses."""

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of a published classifier (torchvision's keys) to this module's keys."""
        return state


def fully_connected(channels: int, size: int, width: int) -> nn.Sequential:
    """Two fully connected layers with ReLU on a flattened (channels, size, size) map, as Fast R-CNN has fc6 and fc7."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(channels * size * size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    )
