"""Several processes, started by `torchrun`: each takes its share of every batch, and rank 0 writes.

Without torchrun everything here does nothing, at no cost.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

T = TypeVar("T")


def launched_rank() -> int:
    """The number that torchrun gave this process, 0 without it; known before `start` and after `finish`."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """The number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def start(device: torch.device) -> None:
    """Join the other processes. Tensors on the CPU go through gloo also where the device is CUDA."""
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ  # by torchrun or the like
    if launched and not dist.is_initialized():
        if device.type == "cuda":
            dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
        else:
            dist.init_process_group("gloo")


def finish() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_max(number: int) -> int:
    """Return the largest number of all processes. On the host: waits for the others, never for a GPU."""
    if world_size() == 1:
        return number
    shared = torch.tensor(number)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


def all_reduce_mean(values: list[float]) -> list[float]:
    """Average numbers over the processes, on the host."""
    if world_size() == 1:
        return values
    shared = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(shared)
    return (shared / world_size()).tolist()


def gather(value: Any) -> list[Any]:
    """Return every process's value, by rank, in every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_main(make: Callable[[], T]) -> T:
    """Let rank 0 alone call `make`; return its result in every process."""
    return gather(make() if rank() == 0 else None)[0]


@contextmanager
def main_first() -> Iterator[None]:
    """Let rank 0 go through the block before the others enter it."""
    if world_size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()


def share_buffers(module: nn.Module) -> None:
    """Give every process rank 0's buffers (batch norm statistics), the ones that a checkpoint holds."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def wrap(detector: nn.Module, device: torch.device) -> nn.Module:
    """Wrap for training: gradients become the mean over the processes. Without others, the detector itself."""
    if world_size() == 1:
        return detector
    devices = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(detector, device_ids=devices)
