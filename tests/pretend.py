"""A GPU to pretend: tensors that say they lie on `pretend:0`, and are computed on the CPU by the rules of a GPU.

Operands on two devices are an error, as on a GPU, and what a GPU would make the host wait for is counted. So every test
run sees a tensor made on the wrong device, or a new host sync, where there is no GPU.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,  # pyright: ignore[reportAttributeAccessIssue]
    _setup_privateuseone_for_python_backend,  # pyright: ignore[reportAttributeAccessIssue]
)

import detkit

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
    "pretend",
]
PACKAGE = Path(detkit.__file__).parent
aten = torch.ops.aten
# the size of what they return, or the value, is data: the host waits for it
SYNCS = {
    aten._local_scalar_dense,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten.unique_dim,
}
INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPY = {aten.copy_, aten._to_copy}


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend("pretend", _Module())
AUTOCAST = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")  # kept: it ends with this object
AUTOCAST.fallback(torch.library.fallthrough_kernel)
GPU = torch.device("pretend:0")


class PretendTensor(Tensor):
    """A tensor of the CPU, `elem`, that says it lies on the GPU."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> "PretendTensor":
        layout = {"strides": elem.stride(), "storage_offset": elem.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, elem.size(), dtype=elem.dtype, device=GPU, **layout)  # pyright: ignore
        made.elem = elem
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"pretend {self.elem!r}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with PretendGPU():  # what reads a result where the mode has ended
            return func(*args, **(kwargs or {}))


class PretendGPU(TorchDispatchMode):
    """Within it, tensors may lie on `pretend:0`. syncs: how often the host waited, by file and function of detkit."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs: Counter[str] = Counter()

    def __enter__(self) -> Self:
        # torch.tensor(..., device=GPU) then copies from the CPU, which this mode sees
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        # Module.to makes new parameters: `.data` of one that is there cannot become another tensor's
        self._overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        torch.__future__.set_overwrite_module_params_on_conversion(self._overwrite)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet, kwargs = func.overloadpacket, dict(kwargs or {})
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        here = {id(tensor.elem): tensor for tensor in tensors if isinstance(tensor, PretendTensor)}
        if here and packet not in INDEX | COPY and any(t.ndim for t in tensors if not isinstance(t, PretendTensor)):
            shapes = [f"{tuple(tensor.shape)} on {tensor.device.type}" for tensor in tensors]
            raise RuntimeError(f"{func}: operands on two devices: {', '.join(shapes)}")
        on_gpu = bool(here)
        if kwargs.get("device") is not None:
            on_gpu = torch.device(kwargs["device"]).type == GPU.type
            kwargs["device"] = torch.device("cpu")
        if here and waits(packet, args, on_gpu):
            self.syncs[_place()] += 1
        args, kwargs = tree_map(lambda value: value.elem if isinstance(value, PretendTensor) else value, (args, kwargs))

        def moved(value: Any) -> Any:
            if not isinstance(value, Tensor) or not on_gpu:
                return value
            return here[id(value)] if id(value) in here else PretendTensor(value)  # the former where it is in place

        return tree_map(moved, func(*args, **kwargs))


def waits(packet: Any, args: Any, on_gpu: bool) -> bool:
    """Whether the host waits for an operation: its result is data of the host, or as large as a mask says."""
    if packet in INDEX:
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if packet in COPY:
        return not on_gpu or (packet is aten.copy_ and not isinstance(args[0], PretendTensor))
    return packet in SYNCS


@contextmanager
def using(device: str | torch.device) -> Iterator[None]:
    """Let tensors lie on a device of DEVICES."""
    if torch.device(device).type == GPU.type:
        with PretendGPU():
            yield
    else:
        yield


def _place() -> str:
    frames = [frame for frame in traceback.extract_stack() if PACKAGE in Path(frame.filename).parents]
    return f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "elsewhere"
