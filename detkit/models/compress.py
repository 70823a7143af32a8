"""Fully connected layers as pairs of thinner ones (Fast R-CNN, section 3.1: truncated SVD).

A config says with `model.svd`, layer: rank, which layers are such pairs, so a checkpoint rebuilds by itself. Layers
have the names of `fully_connected_layers`: the paper's for the layers of the region head's tail, else their path.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detkit.errors import UserError
from detkit.models.base import Detector
from detkit.ops import truncated_svd

TAIL = "head.tail."
PAPER_NAMES = ("fc6", "fc7")  # of the tail's layers, see Backbone.tail


class LowRankLinear(nn.Module):
    """An untrained pair that may take a layer's place: `first`, S_t V_t', without bias, and `second`, U_t."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = layer.in_features, layer.out_features, rank
        self.first = nn.Linear(self.in_features, rank, bias=False)
        self.second = nn.Linear(rank, self.out_features, bias=layer.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


Layer = nn.Linear | LowRankLinear


@dataclass(frozen=True)
class Compressed:
    """One layer before and after. error: of its weight, relative Frobenius norm."""

    name: str
    before: nn.Linear
    after: LowRankLinear
    error: float


def fully_connected_layers(detector: nn.Module) -> dict[str, tuple[str, Layer]]:
    """Return name: (path, layer) of every fully connected layer of a detector, pairs as one, in their order.

    The first two of the region head's tail are fc6 and fc7; others are called by their path.
    """
    layers: dict[str, tuple[str, Layer]] = {}
    inside = "\0"  # path of the pair whose own two layers come next
    names = iter(PAPER_NAMES)
    for path, module in detector.named_modules():
        if isinstance(module, Layer) and not path.startswith(inside):
            name = next(names, path) if path.startswith(TAIL) else path
            layers[name] = path, module
            inside = f"{path}." if isinstance(module, LowRankLinear) else inside
    return layers


def find_layer(detector: nn.Module, text: str) -> str:
    """Return the name, see `fully_connected_layers`, of the layer that is meant by its name, path, or path's end.

    Raises UserError, in one line, where there is no such layer (naming those there are), or where several end so.
    """
    layers = fully_connected_layers(detector)
    for name, (path, _) in layers.items():
        if text in (name, path):
            return name
    alike = [name for name, (path, _) in layers.items() if path.endswith(f".{text}")]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise UserError(f"{text!r} is the end of several layers: {', '.join(alike)}")
    raise UserError(f"no fully connected layer {text!r}; there are {describe_layers(detector)}")


def describe_layers(detector: nn.Module) -> str:
    """Name the fully connected layers with their sizes, in one line."""
    told = []
    for name, (path, layer) in fully_connected_layers(detector).items():
        place = "" if name == path else f"{path}, "
        rank = f", of rank {layer.rank}" if isinstance(layer, LowRankLinear) else ""
        told.append(f"{name} ({place}{layer.in_features} -> {layer.out_features}{rank})")
    return ", ".join(told) or "none"


def restructure(detector: Detector, ranks: Mapping[str, int]) -> None:
    """Replace layers by pairs, untrained, in place, as `model.svd` says; a checkpoint's weights fit them.

    Raises UserError, in one line, for an unknown layer or a rank that it cannot have, and where pretrained weights
    would be lost.
    """
    if detector.config.backbone.weights is not None:
        raise UserError(
            "model.svd: pairs cannot take weights from model.backbone.weights; train without it, then compress with: "
            "detkit export CHECKPOINT --svd LAYER=RANK"
        )
    try:
        for path, _, pair in _choose(detector, ranks).values():
            detector.set_submodule(path, pair)
    except UserError as error:
        raise UserError(f"model.svd: {error}") from None


@torch.no_grad()
def compress(detector: Detector, ranks: Mapping[str, int]) -> list[Compressed]:
    """Replace layers by the truncated SVD of their weights, in place; one entry a layer, in the order of `ranks`.

    ranks: layer (see `find_layer`): rank. Raises UserError, in one line, for an unknown layer, one that is a pair
    already, and a rank not in 1..the smaller of its inputs and outputs; the detector is then as it was.
    """
    done = []
    for name, (path, layer, pair) in _choose(detector, ranks).items():
        factors = truncated_svd(layer.weight, pair.rank)
        pair.to(layer.weight).train(layer.training)
        pair.first.weight.copy_(factors.first)
        pair.second.weight.copy_(factors.second)
        if layer.bias is not None:
            pair.second.bias.copy_(layer.bias)
        detector.set_submodule(path, pair)
        done.append(Compressed(name, layer, pair, factors.error))
    return done


def _choose(detector: nn.Module, ranks: Mapping[str, int]) -> dict[str, tuple[str, nn.Linear, LowRankLinear]]:
    """Return name: (path, layer, a pair for it); all are found and checked before any is replaced."""
    layers = fully_connected_layers(detector)
    chosen: dict[str, tuple[str, nn.Linear, LowRankLinear]] = {}
    for text, rank in ranks.items():
        name = find_layer(detector, text)
        path, layer = layers[name]
        if isinstance(layer, LowRankLinear):
            raise UserError(f"{name} is of rank {layer.rank} already; start from the whole checkpoint")
        if name in chosen:
            raise UserError(f"{text!r} is {name}, which is named twice")
        inputs, outputs = layer.in_features, layer.out_features
        if not 1 <= rank <= min(inputs, outputs):
            raise UserError(f"{text}: rank {rank} of {inputs} -> {outputs} is not in 1..{min(inputs, outputs)}")
        chosen[name] = path, layer, LowRankLinear(layer, rank)
    return chosen
