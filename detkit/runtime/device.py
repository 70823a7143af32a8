"""Where tensors live and how they are laid out there."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import torch
from torch import nn

from detkit.errors import UserError
from detkit.runtime.distributed import local_rank
from detkit.runtime.memory import tune
from detkit.structures import Images

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU, for which the process is tuned.

    Raises UserError for `cuda` where there is none, and for other names.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        tune()
        return torch.device("cpu")
    if name.partition(":")[0] != "cuda":
        raise UserError(f"device {name!r} is not one of auto, cpu, cuda")
    if not torch.cuda.is_available():
        raise UserError(f"device {name!r}: torch {torch.__version__} finds no CUDA device; use device cpu or auto")
    index = int(name.partition(":")[2] or local_rank())
    if index >= torch.cuda.device_count():
        raise UserError(f"device cuda:{index}: there are only {torch.cuda.device_count()} CUDA devices")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def resolve_amp(device: torch.device, amp: str) -> str:
    """Settle `auto`: bf16 where the device multiplies it in hardware made for that, else none.

    That is CUDA from compute capability 8 on, and CPUs with AMX or AVX512-BF16; others widen bf16 first and are slower
    than float32. Of AVX512-BF16 a training step of the shapes takes .7 to .77 of float32's time, detection on 16 images
    .6 to .7.
    """
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "none"
    # a torch before 2.12 or so does not tell; then it's float32
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "none"


def autocast(device: torch.device, amp: str) -> AbstractContextManager:
    """The autocast context of `amp`: none, auto, bf16 or fp16."""
    amp = resolve_amp(device, amp)
    return torch.autocast(device.type, AMP_TYPES.get(amp), enabled=amp != "none")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in the calling thread alone."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def to_device(detector: nn.Module, device: torch.device, channels_last: bool) -> None:
    """Move a detector to its device and memory format, in place."""
    detector.to(device)
    detector.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def images_to_device(images: Images, device: torch.device, channels_last: bool) -> Images:
    """Move a batch to its device and memory format; from pinned memory without blocking."""
    images = images.to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    # reordered, where the loader's order is another, while still uint8: a quarter of the bytes
    return replace(images, pixels=images.pixels.contiguous(memory_format=layout))
