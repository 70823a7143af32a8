"""The network that is looked into: a backbone, a classifier or a detector's backbone, and its layers."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_weight

from detkit.backbones import BACKBONES, Backbone, create_backbone
from detkit.backbones.describe import trained_size
from detkit.backbones.timm_models import PREFIX
from detkit.backbones.weights import CAFFE, unwrap
from detkit.backbones.zfnet import ResponseNorm
from detkit.checkpoints.checkpoint import load_detector
from detkit.config import BackboneConfig, Config
from detkit.data.transforms import build_test
from detkit.errors import UserError, did_you_mean
from detkit.models import Detector
from detkit.structures import InputSpec
from detkit.verified import read_torch

BEST = "best.pt"
# what follows a convolution and changes no cell's neighbourhood
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Hardswish, nn.GELU, nn.ELU, nn.Mish)
FOLLOWERS = (*RECTIFIERS, nn.BatchNorm2d)
NORMS = (ResponseNorm, nn.LocalResponseNorm)


@dataclass
class Network:
    """A network and how it wants its images.

    name: for people. body: what has the layers; (B, 3, H, W), normalised, -> whatever it gives. input: how images must
    arrive. classes: the names of the scores that `body` gives, () where it gives none, and of a detector its own.
    detector: whose backbone the body is, with its config, if it is one's. trained: whether weights were loaded.
    """

    name: str
    body: nn.Module
    input: InputSpec
    classes: tuple[str, ...] = ()
    detector: Detector | None = None
    config: Config | None = None
    trained: bool = True

    def __post_init__(self) -> None:
        (self.body if self.detector is None else self.detector).eval().requires_grad_(False)
        for module in self.body.modules():
            if hasattr(module, "inplace"):  # else a layer's output is the next one's
                module.inplace = False  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]

    @property
    def device(self) -> torch.device:
        return next(self.body.parameters()).device

    @cached_property
    def side(self) -> tuple[int, int]:
        """(height, width) of the input for an image that is as wide as high."""
        return self.input.fit(256, 256)

    def pixels(self, image: np.ndarray) -> Tensor:
        """Image (H, W, 3) uint8 -> (1, 3, h, w) float32, 0 to 255, of the size that the network sees."""
        resized, _, _ = build_test(self.input)(image, np.zeros((0, 4), np.float32), objects=0)
        return torch.from_numpy(np.ascontiguousarray(resized)).permute(2, 0, 1)[None].float().to(self.device)

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W), 0 to 255 -> the values that the body reads."""
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (self.input.mean, self.input.std))
        return (pixels / self.input.divisor - mean) / std

    def run(self, pixels: Tensor) -> Any:
        """(B, 3, H, W), 0 to 255 -> what the body gives."""
        return self.body(self.normalise(pixels))

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Units, rows and columns of each layer of one value or map a unit, in the order in which they are computed.

        Modules that are called several times are left out: their output is no one layer's.
        """
        found: dict[str, tuple[int, int, int]] = {}
        calls: Counter[str] = Counter()

        def see(name: str, output: Any) -> None:
            calls[name] += 1
            if isinstance(output, Tensor) and output.ndim in (2, 4) and len(output) == 1:
                found[name] = (*as_maps(output).shape[1:],)  # pyright: ignore[reportArgumentType]

        names = [name for name, _ in self.body.named_modules() if name]
        with torch.no_grad(), watched(self.body, names, see):
            self.run(torch.zeros(1, 3, *self.side, device=self.device))
        return {name: shape for name, shape in found.items() if calls[name] == 1}

    @cached_property
    def layers(self) -> list[str]:
        """The layers along the network: each convolution with what follows it up to its rectifier, and each block."""
        return [name for name in _walk(self.body, "", self.shapes) if name in self.shapes]

    def check(self, layer: str, unit: int | None = None) -> str:
        """Return a layer's name; UserError, which says what there is, for an unknown layer or unit."""
        if layer not in self.shapes:
            parts = f", and their parts, such as {next(iter(self.shapes))}"
            known = did_you_mean(layer, self.shapes)
            known = known if known.startswith("; did") else ""
            raise UserError(f"--layer {layer}: no layer of {self.name}{known}; it has {', '.join(self.layers)}{parts}")
        units = self.shapes[layer][0]
        if unit is not None and not 0 <= unit < units:
            raise UserError(f"--unit {unit}: {layer} of {self.name} has {units} units, 0 to {units - 1}")
        return layer

    def module(self, layer: str) -> nn.Module:
        return self.body.get_submodule(layer)

    def record(self, pixels: Tensor, layers: list[str]) -> dict[str, Tensor]:
        """(B, 3, H, W), 0 to 255 -> the maps (B, C, h, w) of layers, 1 x 1 for single values."""
        return self.record_seen(self.normalise(pixels), layers)

    def record_seen(self, seen: Tensor, layers: list[str]) -> dict[str, Tensor]:
        """`record` of normalised images."""
        maps: dict[str, Tensor] = {}

        def see(name: str, output: Tensor) -> None:
            maps[name] = as_maps(output)
            if len(maps) == len(layers):
                raise _Enough

        with suppress(_Enough), watched(self.body, layers, see):
            self.body(seen)
        return maps


class _Enough(Exception):
    """What is behind the layers that are looked at need not be computed."""


def as_maps(output: Tensor) -> Tensor:
    """(B, C) -> (B, C, 1, 1); maps stay."""
    return output if output.ndim == 4 else output[..., None, None]


@contextmanager
def watched(body: nn.Module, names: list[str], see: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `see` with the name and output of each of these modules as it is computed."""
    hooks = []
    for name in names:
        hook = lambda _module, _inputs, output, name=name: see(name, output)  # noqa: E731
        hooks.append(body.get_submodule(name).register_forward_hook(hook))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _walk(module: nn.Module, prefix: str, known: Mapping[str, Any]) -> list[str]:
    """The layers of a module that holds layers in a row; those that are no such row are blocks."""
    rows: list[str] = []
    last: str | None = None  # a convolution whose rectifier may follow
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(child, nn.Conv2d | nn.Linear):
            rows.append(path)
            last = path
        elif isinstance(child, FOLLOWERS) and last is not None and path in known:
            rows[-1] = path
            last = None if isinstance(child, RECTIFIERS) else last
        elif has_layers(child):
            wrapped = isinstance(module, Backbone) and len(list(module.children())) == 1  # timm's
            rows += _walk(child, f"{path}.", known) if wrapped or _is_row(child) or path not in known else [path]
            last = None
        elif not isinstance(child, FOLLOWERS):
            last = None
    return rows


def has_layers(module: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv2d | nn.Linear) for layer in module.modules())


def _is_row(module: nn.Module) -> bool:
    return type(module) in (nn.Sequential, nn.ModuleList) or isinstance(module, Backbone)


def open_network(name: str, weights: str | None = None, device: torch.device | str = "cpu") -> Network:
    """Open a backbone by its name, or a detector: `voc`, a checkpoint or the folder of a run.

    weights: of a backbone, a file or `imagenet`; None leaves it as it is initialised. A file that has the last layers
    of ImageNet's classifier, too, gives that classifier. Raises UserError for what isn't there, or doesn't fit.
    """
    if name in BACKBONES.names() or name.startswith(PREFIX):
        return _open_backbone(name, weights, device)
    if weights is not None:
        raise UserError(f"--weights {weights}: goes with a backbone, and {name} is none; detkit backbones lists them")
    path = Path(name)
    if path.is_dir():
        if not (path / BEST).is_file():
            raise UserError(f"{path}: a folder without a checkpoint {BEST}")
        path = path / BEST
    elif not path.exists() and name != "voc" and not path.suffix and "/" not in name:
        raise UserError(f"{name}: no checkpoint, and no backbone{did_you_mean(name, [*BACKBONES.names(), 'voc'])}")
    detector, config = load_detector(name if name == "voc" else str(path), device)
    return of_detector(detector, config, name)


def of_detector(detector: Detector, config: Config, name: str) -> Network:
    """Return a detector's network; its layers are those of its backbone."""
    return Network(name, detector.backbone, detector.input, detector.classes, detector, config)


def _open_backbone(name: str, weights: str | None, device: torch.device | str) -> Network:
    classifier = None if weights is None else _classifier(name, weights)
    if classifier is not None:
        body, classes = classifier
        return Network(name, body.to(device), _spec(BACKBONES.get(name)()), classes)
    body = create_backbone(BackboneConfig(name, weights))
    spec = _spec(body)
    if weights is not None and weights.endswith(CAFFE):
        spec = InputSpec(
            spec.size, (0.482353, 0.458824, 0.407843), (1 / 255, 1 / 255, 1 / 255)
        )  # as Caffe's networks want it
    return Network(name, body.to(device), spec, trained=weights is not None)


def _spec(backbone: Backbone) -> InputSpec:
    side = trained_size(backbone)
    if backbone.darknet:
        return InputSpec((side, side), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return InputSpec((side, side))


def _classifier(name: str, weights: str) -> tuple[nn.Module, tuple[str, ...]] | None:
    """Torchvision's classifier on this backbone, and its classes, where the weights are all of it."""
    backbone = None if name.startswith(PREFIX) else BACKBONES.get(name)()
    if backbone is None or backbone.imagenet is None:
        return None
    published: Any = get_weight(backbone.imagenet)
    if weights == "imagenet":
        state = dict(published.get_state_dict(progress=True, check_hash=True))
    elif Path(weights).is_file() and weights.endswith((".pth", ".pt")):
        state = unwrap(read_torch(Path(weights), "a file of PyTorch weights"))
    else:
        return None
    body = get_model(type(published).__name__.removesuffix("_Weights").lower(), weights=None)
    wanted = body.state_dict()
    if not isinstance(state, dict) or any(
        not isinstance(state.get(key), Tensor) or state[key].shape != tensor.shape for key, tensor in wanted.items()
    ):
        return None
    body.load_state_dict({key: state[key] for key in wanted})
    return body, tuple(published.meta["categories"])
