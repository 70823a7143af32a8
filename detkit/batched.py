"""The base of all batched structures: dataclasses whose methods work field by field."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

# Marks on fields, in their metadata
LABELS = {"padding": -1}  # what stands for no object; in all other fields 0, or False, does
SHARED = {"shared": True}  # the same for all rows of a batch, such as the names of the classes
OF_IMAGES = {"of_images": True}  # (B, ...), where the other fields are (B, N, ...)


@dataclass(frozen=True)
class Batched:
    """A frozen dataclass whose fields share their first dimension, the batch; all methods work field by field.

    A field is a tensor, another Batched, a tuple with an item for each row, a dict, list or tuple of these, or None.
    Whatever else a field holds stays as it is. A subclass's own fields follow without a line of code.

    Two are equal where they are of one type and all fields are, tensors in shape, type and every value, on any device.
    """

    def __init_subclass__(cls, **keys: Any) -> None:
        super().__init_subclass__(**keys)
        for name in ("__eq__", "__hash__"):
            if name not in vars(cls):  # else `dataclass` would make its own, which ask whether tensors are true
                setattr(cls, name, getattr(Batched, name))

    def __eq__(self, other: object) -> bool:
        """Return whether all fields are equal; syncs with the device."""
        if type(other) is not type(self):
            return NotImplemented
        return all(_equal(getattr(self, item.name), getattr(other, item.name)) for item in fields(self) if item.compare)

    def __hash__(self) -> int:
        raise TypeError(f"unhashable type: {type(self).__name__!r}")

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return a copy with `function` applied to every tensor."""
        return replace(self, **{item.name: _map(getattr(self, item.name), function) for item in fields(self)})

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on `device`; from pinned memory the copy to a GPU does not block."""
        # towards the CPU it must: what reads the copy next does not wait for the GPU
        wait = torch.device(device).type == "cpu"
        return self.map(lambda tensor: tensor.to(device, non_blocking=not wait))

    def pin_memory(self) -> Self:
        """Return a copy in page-locked memory."""
        return self.map(Tensor.pin_memory)

    def part(self, rows: slice | Tensor) -> Self:
        """Return some rows of the batch: a slice, or an index (n,) or mask of rows.

        Tensors are views where `rows` is a slice. An index on a GPU costs a sync where a field is a tuple.
        """
        names = [item.name for item in fields(self) if not item.metadata.get("shared")]
        return replace(self, **{name: _part(getattr(self, name), rows) for name in names})

    @classmethod
    def cat(cls, items: Sequence[Self]) -> Self:
        """Join batches, which are padded to a common size where they differ, such as in their number of objects.

        Raises ValueError where only some have an optional field, or a shared field differs.
        """
        if not items:
            raise ValueError(f"{cls.__name__}.cat: no batches to join")
        values: dict[str, Any] = {}
        for item in fields(items[0]):
            where = f"{cls.__name__}.{item.name}"
            column = [getattr(one, item.name) for one in items]
            if item.metadata.get("shared"):
                if any(value != column[0] for value in column):
                    raise ValueError(f"{where}: cannot join batches in which it differs")
                values[item.name] = column[0]
            else:
                values[item.name] = _cat(where, column, item.metadata.get("padding", 0))
        return replace(items[0], **values)


@dataclass(frozen=True)
class BatchedObjects(Batched):
    """A batch whose tensors are (B, N, ...): N objects, boxes or proposals of each image, some of them padding."""

    def take(self, index: Tensor) -> Self:
        """Return the objects (B, K) that `index`, (B, K) int64, names of each image; those at -1 are padding."""
        objects = [item for item in fields(self) if not item.metadata.get("of_images")]
        takes = {item.name: partial(_take, index=index, padding=item.metadata.get("padding", 0)) for item in objects}
        return replace(self, **{name: _map(getattr(self, name), take) for name, take in takes.items()})


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other.to(one.device))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if type(one) in (list, tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Batched):
        return value.map(function)
    if isinstance(value, Mapping):
        return {key: _map(item, function) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_map(item, function) for item in value)
    return value


def _part(value: Any, rows: slice | Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, Batched):
        return value.part(rows)
    if isinstance(value, Mapping):
        return {key: _part(item, rows) for key, item in value.items()}
    if type(value) in (list, tuple):
        if any(isinstance(item, Tensor | Batched) for item in value):
            return type(value)(_part(item, rows) for item in value)
        if isinstance(rows, slice):
            return value[rows]
        return type(value)(value[row] for row in torch.arange(len(value))[rows.cpu()].tolist())
    return value


def _cat(where: str, values: Sequence[Any], padding: int) -> Any:
    first = values[0]
    if any((value is None) != (first is None) for value in values):
        raise ValueError(f"{where}: cannot join batches of which only some have it")
    if isinstance(first, Tensor):
        return _cat_tensors(values, padding)
    if isinstance(first, Batched):
        return type(first).cat(values)
    if isinstance(first, Mapping):
        if any(value.keys() != first.keys() for value in values):
            raise ValueError(f"{where}: cannot join batches with other names in it")
        return {key: _cat(f"{where}[{key!r}]", [value[key] for value in values], padding) for key in first}
    if type(first) in (list, tuple):
        if any(isinstance(item, Tensor | Batched) for item in first):
            return type(first)(_cat(where, column, padding) for column in zip(*values, strict=True))
        return type(first)(item for value in values for item in value)
    return first


def _cat_tensors(tensors: Sequence[Tensor], padding: int) -> Tensor:
    """Join along the first dimension, padded at the end of the others."""
    sizes = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [size - length for size, length in zip(sizes, tensor.shape[1:])]
        if any(missing):
            # torch.nn.functional.pad wants (before, after) of each dimension, the last one first
            amounts = [amount for size in reversed(missing) for amount in (0, size)]
            tensor = nn.functional.pad(tensor, amounts, value=padding)
        padded.append(tensor)
    return torch.cat(padded)


def _take(tensor: Tensor, index: Tensor, padding: int) -> Tensor:
    """Gather (B, N, ...) at (B, K) -> (B, K, ...), `padding` where the index is -1."""
    shape = (*index.shape, *tensor.shape[2:])
    if tensor.shape[1] == 0:
        return tensor.new_full(shape, padding)
    index = index.reshape(*index.shape, *[1] * (tensor.ndim - 2)).expand(shape)
    return tensor.gather(1, index.clamp(min=0)).masked_fill(index < 0, padding)
