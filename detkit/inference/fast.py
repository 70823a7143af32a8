"""A detector's layers as detection on torch runs them: fewer, and with weights laid out for the processor.

A convolution takes the batch norm, the sum and the activation behind it into itself. On a CPU its weights are reordered
once, where torch does so at every call, and what is behind it is applied while the result is in the cache: oneDNN's
operators, as torch's own compiler uses them. The detector stays as it is; `Fast.running` puts the others in place for a
while.
"""

import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from detkit.backbones import Backbone
from detkit.errors import in_a_line
from detkit.models import Detector
from detkit.runtime.depthwise import StridedDepthwise
from detkit.runtime.device import AMP_TYPES, resolve_amp
from detkit.runtime.screen import complain
from detkit.structures import Images

NORMS = nn.BatchNorm2d, FrozenBatchNorm2d
LEAVES = *NORMS, StridedDepthwise
RELUS = F.relu, torch.relu, torch.relu_, "relu", "relu_"
SUMS = operator.add, operator.iadd, torch.add
# the name and the numbers that oneDNN has for an activation behind a convolution
ACTIVATIONS: dict[type, Callable[[Any], tuple[str, list[float]]]] = {
    nn.Identity: lambda _: ("none", []),
    nn.ReLU: lambda _: ("relu", []),
    nn.ReLU6: lambda _: ("hardtanh", [0.0, 6.0]),
    nn.LeakyReLU: lambda layer: ("leaky_relu", [layer.negative_slope]),
    nn.Hardswish: lambda _: ("hardswish", []),
    nn.SiLU: lambda _: ("swish", []),
}
# MKL, torch's own for fully connected layers, leaves much of AMD's processors unused
_CPU = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")
MKL_IS_SLOW = "AMD" in _CPU and torch.backends.mkldnn.is_available()
# what oneDNN's operators run in: bfloat16 where the processor multiplies it
FORMATS = (torch.float32, *[torch.bfloat16] * (resolve_amp(torch.device("cpu"), "auto") == "bf16"))
# of one convolution, the most orders of its weights that are kept, and their bytes
ORDERS, ORDER_BYTES = 16, 1 << 22
FEW_ROWS = 8  # below, reading the weights is all the time
# Packages whose networks take the same way for every image: a graph, drawn once, is all of them. Those of a user's own
# may not; only their rows of layers become graphs.
KNOWN = "detkit", "torch", "torchvision", "timm"


class Convolution(nn.Module):
    """A convolution, with the batch norm, the sum and the activation behind it, where there are such."""

    def __init__(self, layer: nn.Conv2d, norm: Any = None, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.geometry: Any = layer.padding, layer.stride, layer.dilation, layer.groups
        self.activation = activation or nn.Identity()
        weight, bias = layer.weight, layer.bias
        if norm is not None:
            statistics = norm.running_mean, norm.running_var, norm.eps
            weight, bias = fuse_conv_bn_weights(weight, bias, *statistics, norm.weight, norm.bias)
        self.weight, self.bias = weight.detach(), None if bias is None else bias.detach()
        on_cpu = self.weight.device.type == "cpu" and self.weight.dtype == torch.float32
        self.reorders = on_cpu and torch.backends.mkldnn.is_available()
        # by number format, whether of several images, and size of the map: others may want another order
        self.reordered: dict[tuple[torch.dtype, bool, torch.Size], Tensor] = {}

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """added: what the result is added to, before the activation."""
        padding, stride, dilation, groups = self.geometry
        if self.reorders and torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        plain = not self.reorders or x.dtype not in FORMATS or not x.numel()
        # a sum of other shapes is broadcast, one of other number formats takes the finer
        if plain or (added is not None and (added.shape, added.dtype) != (self._shape(x), x.dtype)):
            result = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            return self.activation(result if added is None else result + added)
        weight, onednn = self._reordered(x), torch.ops.mkldnn
        name, numbers = ACTIVATIONS[type(self.activation)](self.activation)
        if added is None:
            return onednn._convolution_pointwise(x, weight, self.bias, *self.geometry, name, numbers, "")
        if x.dtype != torch.float32:  # a sum inside would want the bias, and so the norm's shift, in that format
            result = onednn._convolution_pointwise(x, weight, self.bias, *self.geometry, "none", [], "")
            return self.activation(result.add_(added))
        last = None if name == "none" else name, numbers, ""
        return onednn._convolution_pointwise.binary(x, added, weight, self.bias, *self.geometry, "add", 1, *last)

    def _reordered(self, x: Tensor) -> Tensor:
        """Return the weights in the order that oneDNN wants for x; it would reorder others at each call.

        Where maps of many sizes come, memory ends that, and those of the first size are taken.
        """
        several, size = len(x) > 1, x.shape[2:]
        key = x.dtype, several, size
        if key not in self.reordered:
            alike = [other for other in self.reordered if other[:2] == (x.dtype, several)]
            full = (len(self.reordered) + 1) * self.weight.nbytes > ORDER_BYTES or len(self.reordered) == ORDERS
            if alike and full:
                return self.reordered[alike[0]]
            padding, stride, dilation, groups = self.geometry
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            weight = self.weight.to(x.dtype)
            self.reordered[key] = reorder(weight, padding, stride, dilation, groups, x.shape)
        return self.reordered[key]

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        sides = zip(x.shape[2:], self.weight.shape[2:], *self.geometry[:3])
        cells = ((side + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for side, kernel, pad, step, gap in sides)
        return len(x), len(self.weight), *cells


class Linear(nn.Module):
    """A fully connected layer by oneDNN, which on AMD's processors takes .4 of the time of torch's own library."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        self.suits = self.weight.device.type == "cpu" and self.weight.dtype == torch.float32 and MKL_IS_SLOW

    def forward(self, x: Tensor) -> Tensor:
        few = x.numel() < FEW_ROWS * x.shape[-1]
        if few or not self.suits or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class _Tracer(fx.Tracer):
    def path_of_module(self, mod: nn.Module) -> str:
        try:
            return super().path_of_module(mod)
        except NameError:  # a part of a row of layers, such as `layers[1:]`
            return ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_known(m) or isinstance(m, LEAVES) or super().is_leaf_module(m, module_qualified_name)


def _is_known(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] in KNOWN


def _is_plain(layer: object) -> bool:
    if not isinstance(layer, nn.Conv2d) or type(layer) not in (nn.Conv2d, StridedDepthwise):
        return False
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _graph(network: nn.Module) -> fx.GraphModule | None:
    """Return a network with a `Convolution` for each convolution and what is behind it; None where that can't be."""
    try:
        graph = _Tracer().trace(network)
    except Exception:  # whatever a network does that a graph can't hold
        return None
    named = {
        node.target: _named(network, node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")
    }
    named = {name: Linear(layer) if type(layer) is nn.Linear else layer for name, layer in named.items()}

    def layer(node: fx.Node | None) -> Any:
        if node is not None and node.op in ("call_function", "call_method") and node.target in RELUS:
            return nn.ReLU()
        return named[node.target] if node is not None and node.op == "call_module" else None

    for node in [*graph.nodes]:
        if not _is_plain(convolution := layer(node)):
            continue
        joined, order = [node], {other: number for number, other in enumerate(graph.nodes)}
        norm = activation = added = None  # each read by nobody else than what comes behind
        if type(found := layer(_reader(node))) in NORMS and found.running_mean is not None:
            norm, joined = found, [*joined, _reader(node)]
        reader = _reader(joined[-1])
        if reader is not None and reader.target in SUMS and len(reader.args) == 2 and not reader.kwargs:
            others = [other for other in reader.args if isinstance(other, fx.Node) and other is not joined[-1]]
            late = bool(others) and order[others[0]] > order[node]
            # then it runs there, where nobody else reads its input; else where it is, if nobody reads the other between
            alone = _reader(node.args[0]) is node and isinstance(layer(node.args[0]), Convolution)
            quiet = all(not order[node] < order[user] < order[reader] for other in others for user in other.users)
            if others and (alone if late else quiet):
                added, joined = others[0], [*joined, reader]
                if late:
                    reader.prepend(node)
        kinds = ACTIVATIONS if added is None else (nn.ReLU,)  # all that oneDNN has behind a sum
        if type(found := layer(_reader(joined[-1]))) in kinds:
            activation, joined = found, [*joined, _reader(joined[-1])]
        if added is not None:
            node.args = (node.args[0], added)
        joined[-1].replace_all_uses_with(node)
        for reader in joined[:0:-1]:
            graph.erase_node(reader)
        node.target = f"fast_{node.name}"
        named[node.target] = Convolution(convolution, norm, activation)
    return fx.GraphModule(named, graph)


def _reader(node: Any) -> Any:
    """Return the node that reads a node's result, None where several do."""
    return next(iter(node.users)) if isinstance(node, fx.Node) and len(node.users) == 1 else None


def _named(network: nn.Module, name: Any) -> Any:
    *path, last = name.split(".")
    return getattr(network.get_submodule(".".join(path)), last)


class Fast:
    """What a detector's predictions run by in evaluation, without gradients.

    It is made of the weights and layers that the detector has at the first prediction, and again where these have
    changed. compiled: torch.compile makes it, with weights as constants, which takes up to minutes, and seconds where
    its cache knows the network; where that fails, as without a C++ compiler, a line says so and it goes on without.
    A copy of the detector has none.
    """

    def __init__(self, detector: Detector, compiled: bool = False) -> None:
        self.compiled, self._detector, self._batch = compiled, detector, 0
        self._layers: list[Any] = []
        self._weights: list[Any] = []
        self._hooks: list[Any] = []
        self._made_of: list[Any] = []
        self._instead: list[tuple[dict[str, Any], str, Callable[..., Any]]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()

    @contextmanager
    def running(self, amp: str = "none") -> Iterator[None]:
        """Let the detector's layers be the fast ones.

        amp: the number format, `none`, `bf16` or `fp16`. Where it is not oneDNN's, as on a GPU, the detector's own run,
        but for compiled ones: a norm's shift within a bias of so few digits costs up to .015 of mAP. oneDNN's biases
        are float32 in bf16, too.
        """
        on_cpu = next(self._detector.parameters()).device.type == "cpu"
        has_it = amp == "none" or (on_cpu and AMP_TYPES[amp] in FORMATS)
        if torch.is_grad_enabled() or not (has_it or self.compiled):
            yield
            return
        if self._instead is None or self._state() != self._made_of:
            self._make()
        assert self._instead is not None
        before = [place.get(name) for place, name, _ in self._instead]
        for place, name, function in (put := self._instead):
            place[name] = function
        try:
            yield
        finally:
            for (place, name, _), own in zip(put, before):
                place.pop(name, None)
                if own is not None:
                    place[name] = own

    @classmethod
    @contextmanager
    def lent(cls, detector: Detector) -> Iterator[None]:
        """Give a detector one for a while, where it runs on torch and has none."""
        if detector.fast is not None or detector.backend != "torch":
            yield
            return
        detector.fast = cls(detector)
        try:
            yield
        finally:
            detector.fast = None

    def filled(self, images: Images) -> Images:
        """Return a batch as large as the largest so far where that spares the compiler another network: the last image
        again and again."""
        self._batch = max(self._batch, len(images))
        if not self.compiled or len(images) == self._batch:
            return images
        return images.part(torch.arange(self._batch).clamp(max=len(images) - 1))

    def _make(self) -> None:
        modules = [*self._detector.modules()]
        self._layers = [module._modules for module in modules if module._modules]
        self._weights = [place for module in modules for place in (module._parameters, module._buffers) if place]
        self._hooks = [hooks for module in modules for hooks in _hooks(module)]
        self._made_of = self._state()
        if self.compiled and self._detector.compiled is not None:
            self._instead = [self._compile(self._detector.compiled)]
        else:
            self._instead = [(module.__dict__, "forward", other) for module, other in _fast_layers(self._detector)]

    def _state(self) -> list[Any]:
        """Return what differs once a layer is another or has other hooks, or a weight has other values, or moved."""
        layers = [layer for place in self._layers for layer in place.values()]
        weights = [weight for place in self._weights for weight in place.values() if weight is not None]
        hooks = [len(hooks) for hooks in self._hooks]
        return [*layers, *hooks, *((id(one), one.data_ptr(), one.is_inference() or one._version) for one in weights)]

    def _compile(self, name: str) -> tuple[dict[str, Any], str, Callable[..., Any]]:
        plain = getattr(self._detector, name)
        compiled = torch.compile(plain, options={"freezing": True})

        def run(*inputs: Any) -> Any:
            try:
                return compiled(*inputs)
            except Exception as error:  # whatever the compiler has
                result = plain(*inputs)
                complain(f"torch.compile fails, so the network runs without: {in_a_line(error)[:300]}", "warning")
                self.compiled, self._instead = False, None
                return result

        return self._detector.__dict__, name, run


def run_fast(detector: Detector, device: torch.device, amp: str) -> AbstractContextManager[None]:
    """Return the context in which a detector's predictions run by its fast layers, where it has such."""
    return nullcontext() if detector.fast is None else detector.fast.running(resolve_amp(device, amp))


def _hooks(module: nn.Module) -> tuple[Any, Any]:
    return module._forward_hooks, module._forward_pre_hooks


def _fast_layers(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield the networks below a module, as large as they become graphs, and others that stand for them."""
    for child in module.children():
        if _is_plain(child):
            yield child, Convolution(child)  # pyright: ignore[reportArgumentType]
        elif type(child) is nn.Linear:
            yield child, Linear(child)
        elif any(map(_is_plain, child.modules())):
            # a detector's own parts are called in several ways, a backbone by its forward alone
            whole = isinstance(child, Backbone) or not type(child).__module__.startswith("detkit")
            # and what watches a layer, or is in its place, has to see it run
            watched = any(any(_hooks(layer)) or "forward" in layer.__dict__ for layer in child.modules())
            graph = _graph(child) if whole and _is_known(child) and not watched else None
            if graph is None:
                yield from _fast_layers(child)
            else:
                yield child, graph
        else:
            yield from _fast_layers(child)
