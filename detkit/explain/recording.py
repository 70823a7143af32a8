"""What a detector computes on its way, noted while it predicts: its own code runs, once, and knows nothing of it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Keep = Callable[..., Any]  # takes a call's result, then its arguments; returns what is kept of them


@contextmanager
def record(detector: nn.Module, parts: Mapping[str, Keep]) -> Iterator[dict[str, list[Any]]]:
    """Yield a dict that fills, under each name, with what `keep(result, *arguments)` returns for every call.

    parts: names of the detector's methods or inner modules, and what to keep of their calls.
    """
    seen: dict[str, list[Any]] = {name: [] for name in parts}
    with ExitStack() as stack:
        for name, keep in parts.items():
            part = getattr(detector, name)
            if isinstance(part, nn.Module):
                stack.callback(part.register_forward_hook(_hook(keep, seen[name])).remove)
            else:
                # on this instance alone, in front of the class's method
                setattr(detector, name, _listener(part, keep, seen[name]))
                stack.callback(delattr, detector, name)
        yield seen


def _hook(keep: Keep, into: list[Any]) -> Callable[..., None]:
    return lambda module, arguments, result: into.append(keep(result, *arguments))


def _listener(method: Callable[..., Any], keep: Keep, into: list[Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        result = method(*arguments)
        into.append(keep(result, *arguments))
        return result

    return call
