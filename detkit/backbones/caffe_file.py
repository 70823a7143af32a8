"""Caffe's `.caffemodel` files: the weights and biases of a network's layers, by their names in Caffe.

A file is a message in the wire format of Protocol Buffers, of whose fields a few are read. The network has its layers
in field 100, of which 1 is the name and 7 the blobs, or, until 2014, in field 2, of which 4 is the name and 6 the
blobs. A blob has float32 numbers in 5, and its shape in 7 or, always with four dimensions, in 1 to 4.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkit.errors import UserError

LAYERS = {100: (1, 7), 2: (4, 6)}  # the field of a layer: those of its name and its blobs
PARTS = ("weight", "bias")
VARINT, BYTES = 0, 2
FIXED = {1: 8, 5: 4}  # bytes of the other kinds of fields


def read_caffemodel(path: Path) -> dict[str, Tensor]:
    """Return `NAME.weight` and `NAME.bias` of each layer that has one or two blobs, such as `conv1_1.weight`.

    Raises UserError, naming the file, where it is damaged, something else, or without any such layer.
    """
    state: dict[str, Tensor] = {}
    try:
        for field, layer in _fields(np.memmap(path, np.uint8, "r").data):
            if field in LAYERS:
                state |= _layer(layer, *LAYERS[field])
    except (IndexError, TypeError, ValueError) as error:  # ValueError also for an empty file, which can't be mapped
        raise UserError(f"{path}: damaged, or not a file of Caffe's weights: {error}") from None
    if not state:
        raise UserError(f"{path}: not a file of Caffe's weights: no layer has any")
    return state


def _layer(data: memoryview, name_field: int, blobs_field: int) -> dict[str, Tensor]:
    name, blobs = "", []
    for field, value in _fields(data):
        if field == name_field:
            name = bytes(value).decode()
        elif field == blobs_field:
            blobs.append(_blob(value))
    if len(blobs) > len(PARTS):
        return {}  # batch norm's statistics, and what else is neither a convolution nor fully connected
    return {f"{name}.{part}": blob.flatten() if part == "bias" else blob for part, blob in zip(PARTS, blobs)}


def _blob(data: memoryview) -> Tensor:
    """Return a blob; one of four dimensions whose first two are 1 is a matrix, as Caffe once had them."""
    shape, sides, numbers = [], [1, 1, 1, 1], np.empty(0, np.float32)
    for field, value in _fields(data):
        if field == 5:
            numbers = np.frombuffer(value, "<f4").astype(np.float32)
        elif field == 7:
            shape = [side for _, packed in _fields(value) for side in _integers(packed)]
        elif field <= 4:
            sides[field - 1] = value
    shape = shape or (sides[2:] if sides[:2] == [1, 1] else sides)
    if math.prod(shape) != len(numbers):
        raise ValueError(f"{len(numbers)} numbers in a blob of shape {tuple(shape)}")
    return torch.from_numpy(numbers).view(shape)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield number and value of a message's fields: an integer, or the bytes of any other."""
    at = 0
    while at < len(data):
        key, at = _integer(data, at)
        kind = key & 7
        if kind == VARINT:
            value, at = _integer(data, at)
        elif kind == BYTES or kind in FIXED:
            size, at = _integer(data, at) if kind == BYTES else (FIXED[kind], at)
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"a field of kind {kind}")
        if at > len(data):
            raise ValueError("a field goes on behind its end")
        yield key >> 3, value


def _integer(data: memoryview, at: int) -> tuple[int, int]:
    """Return the integer at a place, seven bits a byte and the lowest first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError("an integer of more than ten bytes")


def _integers(data: memoryview) -> Iterator[int]:
    """Yield integers that lie one behind the other."""
    at = 0
    while at < len(data):
        value, at = _integer(data, at)
        yield value
