"""A writer of Caffe's `.caffemodel` files, whose layout backbones/caffe_file.py tells."""

from pathlib import Path

from torch import Tensor

Layers = dict[str, tuple[Tensor, Tensor]]
"""Weights and biases by a layer's name."""


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A message in the wire format of Protocol Buffers."""

    def integer(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + integer(value >> 7)

    return b"".join(
        integer(number << 3) + integer(value)
        if isinstance(value, int)
        else integer(number << 3 | 2) + integer(len(value)) + value
        for number, value in fields
    )


def write_caffemodel(path: Path, layers: Layers, first_form: bool) -> None:
    """Write layers as Caffe did until 2014 (first_form), or as it does since; among others without blobs."""
    field, name_field, blobs_field = (2, 4, 6) if first_form else (100, 1, 7)
    parts = [message((1, b"VGG"), (field, message((name_field, b"data"), (5 if first_form else 10, 1))))]
    for name, pair in layers.items():
        blobs = []
        for tensor in pair:
            four = [1] * (4 - tensor.ndim) + list(tensor.shape)
            packed = b"".join(message((1, side))[1:] for side in tensor.shape)
            shape = list(zip((1, 2, 3, 4), four)) if first_form else [(7, message((1, packed)))]
            blobs.append((blobs_field, message((5, tensor.numpy().astype("<f4").tobytes()), *shape)))
        parts.append(message((field, message((name_field, name.encode()), *blobs))))
    path.write_bytes(b"".join(parts))
