"""Receptive fields: the pixels that a cell can depend on, by arithmetic, and those that it does depend on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.inside.network import NORMS, Network


@dataclass(frozen=True)
class Field:
    """The pixels that cell (row, column) of a layer is computed from: from cell * stride + low to cell * stride + high.

    stride, low, high: (2,), down and across, in pixels of the input; low and high are infinite where all of the image
    is in each field.
    """

    stride: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """(2,) height and width."""
        return self.high - self.low

    def box(self, cells: Any, side: Sequence[int]) -> np.ndarray:
        """Cells (..., 2), row and column -> boxes (..., 4), xyxy, within an input of `side`, (height, width)."""
        cells, limit = np.asarray(cells, float), np.asarray(side, float)
        with np.errstate(invalid="ignore"):
            low, high = cells * self.stride + self.low, cells * self.stride + self.high
        low, high = low.clip(0, limit - 1), high.clip(1, limit)
        return np.stack([low[..., 1], low[..., 0], high[..., 1], high[..., 0]], -1)


def receptive_fields(network: Network, layers: list[str], side: tuple[int, int] | None = None) -> dict[str, Field]:
    """Return the field of each layer, by arithmetic over the graph that computes it.

    Paddings, poolings of the whole image and paths of different lengths are followed; the neighbourhoods of response
    normalisation are not counted. side: (height, width) of the input that is looked at.
    """
    pixels = torch.zeros(1, 3, *(side or network.side), device=network.device, requires_grad=True)
    through = lambda _module, inputs, _output: inputs[0] * 1  # noqa: E731
    hooks = [module.register_forward_hook(through) for module in network.body.modules() if isinstance(module, NORMS)]
    try:
        with torch.enable_grad():
            maps = network.record(pixels, layers)
    finally:
        for hook in hooks:
            hook.remove()
    known: dict[Any, Field | None] = {}
    fields = {}
    for name in layers:
        result = _field(maps[name].grad_fn, known)
        assert result is not None, f"{name} does not depend on the pixels"
        fields[name] = result
    return fields


def _pair(values: Any) -> np.ndarray:
    values = [*values] if isinstance(values, list | tuple) else [values]
    return np.array(values * 2 if len(values) == 1 else values[-2:], float)


def _convolution(node: Any) -> tuple[np.ndarray, ...]:
    return _pair(node._saved_weight.shape), *map(_pair, (node._saved_stride, node._saved_padding, node._saved_dilation))


def _pooling(node: Any) -> tuple[np.ndarray, ...]:
    kernel, dilation = _pair(node._saved_kernel_size), _pair(getattr(node, "_saved_dilation", 1))
    stride = _pair(node._saved_stride) if len(node._saved_stride) else kernel
    return kernel, stride, _pair(node._saved_padding), dilation


WINDOWS: dict[str, Callable[[Any], tuple[np.ndarray, ...]]] = {
    "ConvolutionBackward0": _convolution,
    "MaxPool2DWithIndicesBackward0": _pooling,
    "AvgPool2DBackward0": _pooling,
}
# each result sees all cells
WHOLE = ("AdaptiveAvgPool2DBackward0", "AdaptiveMaxPool2DBackward0", "MeanBackward1", "AddmmBackward0", "MmBackward0")


def _field(root: Any, known: dict[Any, Field | None]) -> Field | None:
    """The field of what a node of the graph computes, None where it does not depend on the pixels."""
    waiting = [root]
    while waiting:  # no recursion: graphs are deep
        node = waiting[-1]
        sources = [source for source, _ in node.next_functions if source is not None]
        missing = [source for source in sources if source not in known]
        if missing and node not in known:
            waiting += missing
            continue
        waiting.pop()
        if node not in known:
            known[node] = _own(node, [known[source] for source in sources])
    return known[root]


def _own(node: Any, sources: Sequence[Field | None]) -> Field | None:
    kind = type(node).__name__
    if kind == "AccumulateGrad":
        return Field(np.ones(2), np.zeros(2), np.ones(2))
    fields = [field for field in sources if field is not None]
    if not fields:
        return None
    field = Field(fields[0].stride, np.min([one.low for one in fields], 0), np.max([one.high for one in fields], 0))
    if kind in WINDOWS:
        kernel, stride, padding, dilation = WINDOWS[kind](node)
        low = field.low - field.stride * padding
        high = field.high + field.stride * (dilation * (kernel - 1) - padding)
        return Field(field.stride * stride, low, high)
    if kind == "ConstantPadNdBackward0":
        left, _, top, *_ = [*node._saved_pad, 0, 0, 0]
        shift = field.stride * np.array([top, left])
        return Field(field.stride, field.low - shift, field.high - shift)
    if kind in WHOLE:
        return Field(field.stride, np.full(2, -np.inf), np.full(2, np.inf))
    return field


def effective_field(network: Network, layer: str, pixels: Sequence[Tensor]) -> np.ndarray:
    """Return how much the layer's middle cell depends on each pixel, (h, w), 1 in all (Luo et al., 2016).

    pixels: inputs (1, 3, h, w), 0 to 255, of one size: the absolute gradient of the sum of its units, over channels, is
    averaged over them.
    """
    total = torch.zeros(pixels[0].shape[-2:])
    for image in pixels:
        image = image.clone().requires_grad_()
        units = network.record(image, [layer])[layer]
        middle = units[0, :, units.shape[2] // 2, units.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(middle, image)
        total += gradient[0].abs().sum(0).cpu()
    return (total / total.sum().clamp(min=1e-30)).numpy()


def share_of_field(weights: np.ndarray, field: Field, share: float = 0.95) -> float:
    """Return which part of the true field's pixels within the image has `share` of the effective one."""
    ordered = np.sort(weights.ravel())[::-1].cumsum()
    needed = int(np.searchsorted(ordered, share * ordered[-1])) + 1
    height, width = np.minimum(field.size, weights.shape)
    return min(1.0, needed / float(height * width))
