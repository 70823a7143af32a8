"""Any network of timm (PyTorch Image Models, Wightman, 2019) that gives feature maps, as `timm/NAME`."""

import difflib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from detkit.backbones.base import Backbone, FeatureInfo
from detkit.errors import UserError

PREFIX = "timm/"


class Timm(Backbone):
    """Features c1 (stride 2) to c5 (stride 32), those that the network has, the deepest of each stride.

    timm does not tell where their cells lie: `first_cell_centre` is that of networks like ResNet, whatever this one is.
    `model.geometry=published` leaves it out of RoIAlign and anchors.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.body = self._build()
        tapped = self.body.feature_info
        self._taps = dict(zip(tapped.reduction(), zip(tapped.channels(), tapped.out_indices)))
        self.info = tuple(
            FeatureInfo(f"c{stride.bit_length() - 1}", channels, stride) for stride, (channels, _) in self._taps.items()
        )
        if len(self._taps) < len(tapped.out_indices):
            self._tap(self.info)
        fine = [info.name for info in self.info if info.stride <= 16]
        self.region = fine[-1] if fine else self.info[0].name

    def layer_groups(self) -> list[nn.Module]:
        last: list[str] = self.body.feature_info.module_name()
        stages = [nn.ModuleList()]
        for name, layer in self._layers(last):
            stages[-1].append(layer)
            if name in last:
                stages.append(nn.ModuleList())
        if len(stages) != len(last) + 1:
            raise UserError(f"model.backbone: {PREFIX}{self._name} has no stages that could be frozen")
        return list(stages[:-1])

    def truncate(self, name: str) -> None:
        super().truncate(name)
        self._tap(self.info)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x)
        if getattr(self.body, "output_fmt", "NCHW") == "NHWC":
            maps = [each.permute(0, 3, 1, 2).contiguous() for each in maps]
        return {info.name: each for info, each in zip(self.info, maps)}

    def published(self) -> tuple[str, dict[str, Tensor]]:
        state = self._build(pretrained=True).state_dict()
        return f"timm's {self._name}", {f"body.{key}": tensor for key, tensor in state.items()}

    def _layers(self, last: list[str]) -> Iterator[tuple[str, nn.Module]]:
        """The layers in order under timm's names; `last`: the names of those that give the maps."""
        flat = {name.replace(".", "_"): name for name in last}
        for name, layer in self.body.named_children():
            if any(each.startswith(f"{name}.") for each in last):
                for inner, part in layer.named_children():
                    yield f"{name}.{inner}", part
            else:
                yield flat.get(name) or name, layer

    def _tap(self, info: tuple[FeatureInfo, ...]) -> None:
        """Leave of the network what gives these maps, with its values."""
        state = self.body.state_dict()
        self.body = self._build(out_indices=tuple(self._taps[each.stride][1] for each in info))
        # some of timm's networks keep the layers behind
        last: list[str] = self.body.feature_info.module_name()
        names = [name for name, _ in self._layers(last)]
        for name in names[names.index(last[-1]) + 1 :] if last[-1] in names else ():
            parent, _, inner = name.rpartition(".")
            if isinstance(layers := self.body.get_submodule(parent), nn.Sequential):
                delattr(layers, inner)
        self.body.load_state_dict(state, strict=False)
        self.body.train(self.training)

    def _build(self, **keys: Any) -> Any:
        try:
            import timm  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise UserError(f"model.backbone: {PREFIX}{self._name} needs timm; pip install timm") from None
        if not timm.is_model(self._name):
            near = difflib.get_close_matches(self._name, timm.list_models(), n=1, cutoff=0.5)
            meant = f"; did you mean {PREFIX + near[0]!r}?" if near else ""
            raise UserError(f"model.backbone: timm has no network {self._name!r}{meant}")
        try:
            return timm.create_model(self._name, features_only=True, **keys)
        except (RuntimeError, AttributeError, AssertionError, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"model.backbone: timm can't make maps of {self._name} ({reason})") from None
