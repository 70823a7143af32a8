"""A writer of darknet's `.weights` files, whose layout backbones/darknet_file.py tells."""

import struct
from pathlib import Path

from torch import nn

from detkit.backbones.darknet import LocallyConnected


def write_weights(path: Path, network: nn.Module) -> None:
    """Write a network's weights as a file of version 0.2."""
    tensors, weight = [], None
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            tensors += [layer.bias, layer.weight, layer.running_mean, layer.running_var, weight]
        elif isinstance(layer, nn.Conv2d) and layer.bias is None:
            weight = layer.weight  # comes behind the norm's numbers
        elif isinstance(layer, nn.Conv2d | nn.Linear | LocallyConnected):
            tensors += [layer.bias, layer.weight]
    numbers = b"".join(tensor.detach().numpy().astype("<f4").tobytes() for tensor in tensors)
    path.write_bytes(struct.pack("<iiiq", 0, 2, 0, 0) + numbers)
