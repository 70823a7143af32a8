"""Pooling of whole maps."""

from itertools import pairwise

from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, max_pool2d


def adaptive_pool(x: Tensor, size: int) -> Tensor:
    """Adaptive max pooling of square maps (N, C, side, side) to (N, C, size, size).

    At the published sizes its bins are those of the ImageNet network's last pooling layer; where they are all alike
    they are pooled as such a layer does, which unlike adaptive bins can be exported.
    """
    side = x.shape[-1]
    starts = [cell * side // size for cell in range(size)]
    lengths = {-(-(cell + 1) * side // size) - start for cell, start in enumerate(starts)}
    strides = {after - start for start, after in pairwise(starts)} or {1}
    if len(lengths) == len(strides) == 1 and 0 not in strides:
        return max_pool2d(x, lengths.pop(), strides.pop())
    return adaptive_max_pool2d(x, size)
