"""What goes back through rectifiers: the gradient, or another rule's signal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from detkit.errors import UserError
from detkit.inside.network import NORMS, RECTIFIERS, Network

Rule = Literal["deconvnet", "guided"]
RELUS: tuple[Callable[..., Tensor], ...] = (F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
BOUNDED: tuple[Callable[..., Tensor], ...] = (F.relu6, F.hardtanh)
# nodes of autograd's graph
RECTIFYING = "Relu", "Hardtanh", "Hardswish", "LeakyRelu", "Silu"
WEIGHTED = "Convolution", "NativeBatchNorm", "CudnnBatchNorm", "Addmm", "Mm"


class _Rule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rule: Rule) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward((x > 0) & (x == y))
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        (passed,) = ctx.saved_tensors
        upward = grad.clamp(min=0)
        if ctx.rule == "guided":
            upward = upward * passed
        return upward, None, None


class _Rectifiers(TorchFunctionMode):
    """Modules and functions alike: VGG's reduced fc6 and GoogLeNet's layers call functions."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule: Rule = rule

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in RELUS:
            return _Rule.apply(args[0], torch.clamp(args[0].detach(), min=0), self.rule)
        if func in BOUNDED:
            return _Rule.apply(args[0], func(args[0].detach(), *args[1:]), self.rule)
        return func(*args, **(kwargs or {}))


@contextmanager
def rectified(body: nn.Module, rule: Rule) -> Iterator[None]:
    """Within, what goes back through a rectifier of what is computed is, for a signal g that comes from above:

    deconvnet: max(g, 0), whatever the rectifier let through (Zeiler and Fergus). guided: the same where it let
    something through, else 0 (Springenberg et al.). Response normalisation lets all signals through as they are: the
    papers invert none.
    """
    through = lambda _module, inputs, output: inputs[0] + (output - inputs[0]).detach()  # noqa: E731
    hooks = [module.register_forward_hook(through) for module in body.modules() if isinstance(module, NORMS)]
    try:
        with _Rectifiers(rule):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def open_last_rectifiers(maps: Tensor) -> None:
    """Let the gradient of a layer's maps, yet to be asked for, be that of its values before their own rectifiers.

    A unit that is silent has no gradient behind its rectifier; before it, it can be woken.
    """
    waiting = [maps.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or type(node).__name__.startswith(WEIGHTED):
            continue  # what lies deeper belongs to other layers
        if type(node).__name__.startswith(RECTIFYING):
            node.register_hook(lambda _, above: above)
        else:
            waiting += [source for source, _ in node.next_functions]


def check_rectifiers(network: Network, module: nn.Module, method: str, known: tuple[type[nn.Module], ...]) -> None:
    """Raise UserError, which says what there is and what works, where the rectifiers of `module`, which the signal
    passes, are of another kind."""
    others = {type(one).__name__ for one in module.modules() if isinstance(one, RECTIFIERS) and type(one) not in known}
    if others:
        wanted = " or ".join(one.__name__ for one in known)
        raise UserError(
            f"{method} needs the rectifier {wanted}, and {network.name} has {', '.join(sorted(others))}; saliency, "
            "occlusion and Grad-CAM work"
        )
