"""darknet's `.weights` files, read into a network and written from one.

A file is a header and then little-endian float32 numbers, layer after layer in the network's order and without names.
A convolution has bias, weights (outputs, inputs, height, width); one with batch norm has the norm's bias, scales, means
and variances, and its weights. A connected layer has biases, weights (outputs, inputs); a locally connected one
biases (outputs, height, width), weights (cells, outputs, inputs, height, width).

The header is three int32, the version's major, minor and revision number, and the images seen in training: int32
before version 0.2, int64 from it on. The first files held the learning rate, momentum and decay as floats where later
ones have a version, and the weights of connected layers transposed; both show as absurd version numbers.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detkit.backbones.darknet import LocallyConnected
from detkit.errors import UserError
from detkit.files import atomic_path

NUMBER = np.dtype("<f4")
ABSURD = 1000  # a larger version number is the bits of a float


@dataclass(frozen=True)
class Header:
    """major, minor, revision: of the format. seen: images that the network was trained on."""

    major: int = 0
    minor: int = 2
    revision: int = 0
    seen: int = 0

    @property
    def transposed(self) -> bool:
        """Whether connected layers have their weights as (inputs, outputs)."""
        return self.major > ABSURD or self.minor > ABSURD

    @property
    def layout(self) -> str:
        """The format of its bytes, for `struct`."""
        long = self.major * 10 + self.minor >= 2 and self.major < ABSURD and self.minor < ABSURD
        return "<iiiq" if long else "<iiii"


class Stored(NamedTuple):
    """A tensor of a file: its key in the network's state, and whether it is the weight of a connected layer."""

    key: str
    connected: bool


def read_weights(path: str | Path, network: nn.Module, *, exact: bool = True) -> tuple[dict[str, Tensor], Header]:
    """Return a state dict for `network` from a file, and the file's header.

    network: its layers, of the kinds above, must be registered in the file's order. exact: whether the file must end
    with the network; otherwise more layers may follow, as for a backbone. Batch norm's counters are not in a file and
    so not returned. Raises UserError, naming the file, where it can't be read, is too short or too long, or holds what
    no trained network does.
    """
    path = Path(path)
    header, numbers = _open(path)
    expected = network.state_dict()
    tensors = list(_stored(network))
    total = sum(expected[key].numel() for key, _ in tensors)
    if len(numbers) < total or (exact and len(numbers) > total):
        raise UserError(
            f"{path}: holds {len(numbers)} numbers, but the network has {total}: the file is "
            f"{'cut short or ' if len(numbers) < total else ''}another network's"
        )
    state, start = {}, 0
    for key, connected in tensors:
        shape = expected[key].shape
        part = torch.from_numpy(numbers[start : start + shape.numel()].astype(np.float32))
        start += len(part)
        if not part.isfinite().all() or (key.endswith("running_var") and (part < 0).any()):
            what = "values that are not finite" if not part.isfinite().all() else "negative variances"
            raise UserError(f"{path}: {what} where {key} should be; the file is damaged or another network's")
        state[key] = part.view(shape[::-1]).t().contiguous() if connected and header.transposed else part.view(shape)
    return state, header


def write_weights(path: str | Path, network: nn.Module, header: Header | None = None) -> None:
    """Write a network's weights, the full file or nothing; the layout follows the header's version, by default 0.2."""
    header = Header() if header is None else header
    state = network.state_dict()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack(header.layout, header.major, header.minor, header.revision, header.seen))
        for key, connected in _stored(network):
            tensor = state[key].detach().cpu().float()
            tensor = tensor.t() if connected and header.transposed else tensor
            file.write(tensor.contiguous().numpy().astype(NUMBER).tobytes())


def _open(path: Path) -> tuple[Header, np.ndarray]:
    """Return the header and the numbers, which stay on the disk until they are used."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(struct.calcsize("<iiiq"))
    if size < struct.calcsize("<iiii"):
        raise UserError(f"{path}: {size} bytes are too few for a file of darknet's weights")
    header = Header(*struct.unpack_from("<iii", start))
    length = struct.calcsize(header.layout)
    if size < length or (size - length) % NUMBER.itemsize:
        raise UserError(f"{path}: {size} bytes are not a header and whole numbers; not a file of darknet's weights")
    header = Header(*struct.unpack_from(header.layout, start))
    if size == length:  # nothing to map
        return header, np.empty(0, NUMBER)
    return header, np.memmap(path, NUMBER, "r", offset=length)


def _stored(network: nn.Module) -> Iterator[Stored]:
    """Yield the tensors of a network in a file's order."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, LocallyConnected)
    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, kinds)]
    for number, (name, layer) in enumerate(layers):
        if isinstance(layer, nn.BatchNorm2d):
            continue
        after = layers[number + 1] if number + 1 < len(layers) else None
        if after is not None and isinstance(after[1], nn.BatchNorm2d):
            for part in ("bias", "weight", "running_mean", "running_var"):
                yield Stored(f"{after[0]}.{part}", False)
        else:
            yield Stored(f"{name}.bias", False)
        yield Stored(f"{name}.weight", isinstance(layer, nn.Linear))
