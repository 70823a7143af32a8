"""Truncated singular value decomposition of a layer's weights (Fast R-CNN, section 3.1)."""

from typing import NamedTuple

import torch
from torch import Tensor

SLICE = 4096  # rows or columns that are float64 at once


class Factors(NamedTuple):
    """W (M, N) ~ second @ first: first (t, N) is S_t V_t', second (M, t) is U_t, in the dtype of W.

    error: Frobenius norm of the difference, relative to that of W.
    """

    first: Tensor
    second: Tensor
    error: float


@torch.no_grad()
def truncated_svd(weight: Tensor, rank: int) -> Factors:
    """Return the best approximation of `weight` (M, N), float32 or float64, by two factors of `rank` (section 3.1).

    rank: 1..min(M, N). The singular vectors of the shorter side are the eigenvectors of its Gram matrix, summed and
    decomposed in float64, and the other factor is the projection of `weight` on them. Squaring costs half of the
    digits, those of float64: singular values are right to 1e-8 of the largest, which float32 does not tell from exact.
    (torch.svd_lowrank is no quicker at such ranks and leaves a larger error where singular values fall slowly.)
    error: by Eckart and Young the root of the sum of the squares of the singular values left out, over that of all.
    """
    if weight.ndim != 2 or not 1 <= rank <= min(weight.shape):
        raise ValueError(f"truncated_svd: rank {rank} of a weight of shape {tuple(weight.shape)}")
    wide = weight.shape[0] <= weight.shape[1]
    short = weight if wide else weight.T
    gram = torch.zeros(len(short), len(short), dtype=torch.float64, device=weight.device)
    for part in short.split(SLICE, 1):
        part = part.double()
        gram.addmm_(part, part.T)
    squares, vectors = torch.linalg.eigh(gram)
    squares = squares.clamp(min=0)
    vectors = vectors[:, -rank:].flip(1)
    error = float((squares[:-rank].sum() / squares.sum()).sqrt()) if squares.any() else 0.0
    if wide:
        first = torch.cat([(vectors.T @ part.double()).to(weight) for part in short.split(SLICE, 1)], 1)
        return Factors(first, vectors.to(weight), error)
    # here the eigenvectors are V, and W V = U S: its columns have the singular values for lengths
    scaled = torch.cat([part.T.double() @ vectors for part in short.split(SLICE, 1)])
    values = torch.linalg.vector_norm(scaled, dim=0)
    second = torch.where(values > 0, scaled / values, 0)
    return Factors((vectors * values).T.to(weight), second.to(weight), error)
