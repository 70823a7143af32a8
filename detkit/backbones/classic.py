"""Networks that are a row of layers, without or with fully connected ones on the last map."""

from collections.abc import Sequence

from torch import Tensor, nn

from detkit.backbones.base import Backbone, GlobalAveragePool, dilate
from detkit.errors import UserError


class SequentialBackbone(Backbone):
    """A row of layers, some of which give the maps.

    features: the layers up to and with the last map. ends: how many of them there are up to and with each map of
    `info`. starts: the first layer of each of the stages. row: the attribute that holds the layers; where it is empty,
    they are the backbone's own children, under the names that they have in `features`.
    """

    features: nn.Sequential

    def __init__(
        self, features: nn.Sequential, ends: Sequence[int], starts: Sequence[int], row: str = "features"
    ) -> None:
        super().__init__()
        for name, layer in [(row, features)] if row else features.named_children():
            self.add_module(name, layer)
        self._ends, self._starts, self._row = tuple(ends), tuple(starts), row

    def _layers(self) -> list[nn.Module]:
        return list(self.get_submodule(self._row).children())

    def layer_groups(self) -> list[nn.Module]:
        layers = self._layers()
        starts = [start for start in self._starts if start < len(layers)]
        return [nn.ModuleList(layers[start:stop]) for start, stop in zip(starts, [*starts[1:], len(layers)])]

    def truncate(self, name: str) -> None:
        super().truncate(name)
        row = self.get_submodule(self._row)
        for layer, _ in list(row.named_children())[self._ends[len(self.info) - 1] :]:
            delattr(row, layer)

    def tail(self, size: int) -> nn.Module:
        """The layers behind the region map and global average pooling; two new layers where it is the last map."""
        if self.region == self.info[-1].name:
            return super().tail(size)
        end = self._ends[[info.name for info in self.info].index(self.region)]
        deep = self.features[end:]
        self.truncate(self.region)
        return nn.Sequential(deep, GlobalAveragePool())

    def dilate(self) -> None:
        names = [info.name for info in self.info]
        index = names.index(self.region)
        if self.region != names[-1] and dilate(self._between(index)):
            self.truncate(names[index + 1])
            deep = self.info[-1]._replace(stride=self.info[index].stride)
            self.info = (*self.info[:-1], deep)
        else:
            self.truncate(self.region)

    def _between(self, index: int) -> Sequence[nn.Module]:
        """The layers behind a map, up to the next one."""
        return self._layers()[self._ends[index] : self._ends[index + 1]]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        layers = self._layers()
        for info, start, stop in zip(self.info, (0, *self._ends), self._ends):
            for layer in layers[start:stop]:
                x = layer(x)
            maps[info.name] = x
        return maps


class ClassicBackbone(SequentialBackbone):
    """A row of layers whose last map, pooled to `tail_size` cells a side, goes through fully connected layers.

    classifier: fc6 and fc7 with what belongs to them, on flattened maps. Other arguments: see SequentialBackbone.
    """

    width = 4096

    def __init__(
        self, features: nn.Sequential, classifier: nn.Sequential, ends: Sequence[int], starts: Sequence[int]
    ) -> None:
        super().__init__(features, ends, starts)
        self.classifier: nn.Module = classifier

    def tail(self, size: int) -> nn.Module:
        """fc6 and fc7 with dropout; they were trained on maps of `tail_size` cells a side."""
        if size != self.tail_size:
            side = self.tail_size
            raise UserError(f"model.pool_size: {size}, but fc6 of {type(self).__name__} reads maps of {side} x {side}")
        deep = self.classifier
        self.drop_tail()
        self.truncate(self.region)
        return nn.Sequential(nn.Flatten(), deep)

    def drop_tail(self) -> None:
        self.classifier = nn.Identity()

    def convert(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # published feature-only files (converted from Caffe) fill the classifier with NaN
        return {
            key: tensor
            for key, tensor in state.items()
            if not key.startswith("classifier.6.") and not (key.startswith("classifier.") and tensor.isnan().any())
        }
