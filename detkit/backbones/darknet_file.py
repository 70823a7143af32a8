"""darknet's `.weights` files, read into a network.

A file is a header and then little-endian float32 numbers, layer after layer in the network's order and without names.
A convolution has bias, weights (outputs, inputs, height, width); one with batch norm has the norm's bias, scales, means
and variances, and its weights. A connected layer has biases, weights (outputs, inputs); a locally connected one
biases (outputs, height, width), weights (cells, outputs, inputs, height, width).

The header is three int32, the version's major, minor and revision number, and the images seen in training: int32
before version 0.2, int64 from it on. The first files held the learning rate, momentum and decay as floats where later
ones have a version, and the weights of connected layers transposed; both show as absurd version numbers.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from detkit.backbones.darknet import LocallyConnected
from detkit.errors import UserError

NUMBER = np.dtype("<f4")
SHORT, LONG = 16, 20  # bytes of a header before version 0.2, and from it on
ABSURD = 1000  # a larger version number is the bits of a float


def read_weights(path: str | Path, network: nn.Module, *, exact: bool = True) -> dict[str, Tensor]:
    """Return a state dict for `network` from a file.

    network: its layers, of the kinds above, must be registered in the file's order. exact: whether the file must end
    with the network; otherwise more layers may follow, as for a backbone. Batch norm's counters are not in a file and
    so not returned. Raises UserError, naming the file, where it can't be read, is too short or too long, or holds what
    no trained network does.
    """
    path = Path(path)
    numbers, transposed = _open(path)
    tensors = network.state_dict()
    shapes = {key: tensors[key].shape for key in _keys(network)}
    total = sum(shape.numel() for shape in shapes.values())
    if len(numbers) < total or (exact and len(numbers) > total):
        raise UserError(
            f"{path}: holds {len(numbers)} numbers, but the network has {total}: the file is "
            f"{'cut short or ' if len(numbers) < total else ''}another network's"
        )
    state, start = {}, 0
    for key, shape in shapes.items():
        part = torch.from_numpy(numbers[start : start + shape.numel()].astype(np.float32))
        start += len(part)
        if not part.isfinite().all() or (key.endswith("running_var") and (part < 0).any()):
            what = "values that are not finite" if not part.isfinite().all() else "negative variances"
            raise UserError(f"{path}: {what} where {key} should be; the file is damaged or another network's")
        connected = len(shape) == 2
        state[key] = part.view(shape[::-1]).t().contiguous() if connected and transposed else part.view(shape)
    return state


def is_other_kind(path: str | Path, network: nn.Module) -> bool:
    """Whether a file has batch norm where the network's convolutions have none, or none where they have it.

    A file has it where the numbers that would be the variances of the first two convolutions are not negative. False
    where it is too short for the network without batch norm: then it is another network's.
    """
    numbers, _ = _open(Path(path))
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    if len(numbers) < sum(layer.out_channels + layer.weight.numel() for layer in convolutions):
        return False
    start, normed = 0, True
    for layer in convolutions[:2]:
        normed &= bool((numbers[start + 3 * layer.out_channels : start + 4 * layer.out_channels] >= 0).all())
        start += 4 * layer.out_channels + layer.weight.numel()
    return normed != any(isinstance(layer, nn.BatchNorm2d) for layer in network.modules())


def _open(path: Path) -> tuple[np.ndarray, bool]:
    """Return the numbers, which stay on the disk until they are used, and whether connected layers are transposed."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    size = path.stat().st_size
    if size < SHORT:
        raise UserError(f"{path}: {size} bytes are too few for a file of darknet's weights")
    major, minor = np.fromfile(path, "<i4", 2).tolist()
    length = LONG if major * 10 + minor >= 2 and max(major, minor) < ABSURD else SHORT
    if size < length or (size - length) % NUMBER.itemsize:
        raise UserError(f"{path}: {size} bytes are not a header and whole numbers; not a file of darknet's weights")
    # an empty file can't be mapped
    numbers = np.memmap(path, NUMBER, "r", offset=length) if size > length else np.empty(0, NUMBER)
    return numbers, max(major, minor) > ABSURD


def _keys(network: nn.Module) -> list[str]:
    """Return the names of a network's tensors in a file's order."""
    keys: list[str] = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            weight = keys.pop()  # of the convolution in front, which has no bias
            keys += [f"{name}.{part}" for part in ("bias", "weight", "running_mean", "running_var")]
            keys.append(weight)
        elif isinstance(layer, nn.Conv2d | nn.Linear | LocallyConnected):
            keys += [f"{name}.{part}" for part in ("bias", "weight") if getattr(layer, part) is not None]
    return keys
