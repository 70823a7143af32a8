"""Candidates of a batch in order, and in rows by group."""

import torch
from torch import Tensor


def argsort_descending(scores: Tensor) -> Tensor:
    """Return the stable order (M,) int64 of scores (M,), highest first, equal scores as given; -0 equals 0.

    The bits of a float, its lower ones flipped where it is negative, are an integer of the same order; integers are
    sorted several times faster on a CPU (radix sort, ascending only). Scores below float32 are compared as float32.
    """
    if scores.dtype == torch.float64:
        integer, sign_bit = torch.int64, 63
    else:
        scores, integer, sign_bit = scores.float(), torch.int32, 31
    bits = (scores + 0.0).view(integer)  # + 0 turns -0 into 0
    magnitude = torch.iinfo(integer).max
    ascending = bits ^ ((bits >> sign_bit) & magnitude)
    return (~ascending).argsort(stable=True)


def ranked_rows(key: Tensor, keys: int, order: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Lay candidates out in one row for each key, in each row as they come in `order`.

    key: (M,) int64 of all candidates, 0 to keys - 1; order: (N,) int64, candidates, not necessarily all. Returns the
    candidates (keys, K) and filled (keys, K) bool, False for padding; K is the longest row, cut to `limit`.
    """
    key = key[order]
    by_key = order[key.int().argsort(stable=True)]
    sizes = torch.bincount(key, minlength=keys)
    width = min(int(sizes.max()), limit) if keys else 0  # host sync
    rank = torch.arange(width, device=order.device)
    filled = rank < sizes.unsqueeze(1)
    start = (sizes.cumsum(0) - sizes).unsqueeze(1)
    return by_key[torch.where(filled, start + rank, 0)], filled
