"""Ridge regression of R-CNN's and SPPNet's box deltas, of one class whose features need not be in memory."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

CHUNK = 64 << 20  # bytes of features that fit_ridge reads at once


class Rows(Protocol):
    """Features (N, D) that are read in slices of rows: a tensor is one, a file may be, see models/pairs.py."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: slice, /) -> Tensor: ...


@torch.no_grad()
def fit_ridge(features: Rows, targets: Tensor, ridge: float = 1000.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Fit a linear map of features to box deltas; return weight (T, D) and bias (T,): x @ weight.T + bias is predicted
    (R-CNN, appendix C, and its code, for one class).

    features: (N, D), float32 or float64, which are multiplied by `scale`; targets: (N, T), T = 4 deltas. Minimises
    |Y - mean - A beta|^2 + ridge |beta|^2, where A is the scaled features and a column of ones: the constant is
    regularised too. Without rows 0 is predicted. weight is for features before `scale`.

    R-CNN's code also whitens the targets (Y T) and undoes it in predictions: as all deltas share one ridge, beta is
    linear in Y and T cancels, so that this is the same map without it.

    Memory: three matrices of min(N, D) ** 2 or N x D numbers at most, whichever N is: of few rows (N <= D) the rows
    themselves are held and the Gram matrix of rows is factored, of many that of columns, which is summed up by chunks.
    In float32 Cholesky alone is good to about 1e-7 |x|^2 / ridge; a second solve, for the residual of the data
    themselves, brings it back to rounding.
    """
    if targets.ndim != 2 or len(features.shape) != 2 or features.shape[0] != len(targets):
        raise ValueError(
            f"fit_ridge: expected features (N, D) and targets (N, T), got {tuple(features.shape)} and "
            f"{tuple(targets.shape)}"
        )
    count, dim = features.shape
    if count == 0:
        return targets.new_zeros(targets.shape[1], dim), targets.new_zeros(targets.shape[1])
    mean = targets.mean(0)
    step = max(1, CHUNK // (dim * targets.element_size()))

    def chunks() -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield which rows, their features with the column of ones, and their targets less the mean."""
        for first in range(0, count, step):
            rows = slice(first, min(first + step, count))
            x = targets.new_ones(rows.stop - first, dim + 1)
            torch.mul(features[rows].to(targets), scale, out=x[:, :-1])
            yield rows, x, targets[rows] - mean

    if count <= dim:
        x, y = targets.new_empty(count, dim + 1), targets - mean
        for rows, part, _ in chunks():
            x[rows] = part
        factor = _factor(x @ x.T, ridge)
        alpha = torch.cholesky_solve(y, factor)
        alpha += torch.cholesky_solve(y - x @ (x.T @ alpha) - ridge * alpha, factor)
        beta = x.T @ alpha
    else:
        gram, moment = targets.new_zeros(dim + 1, dim + 1), targets.new_zeros(dim + 1, targets.shape[1])
        for _, x, y in chunks():
            gram.addmm_(x.T, x)
            moment.addmm_(x.T, y)
        factor = _factor(gram, ridge)
        del gram
        beta = torch.cholesky_solve(moment, factor)
        residual = -ridge * beta
        for _, x, y in chunks():
            residual.addmm_(x.T, y - x @ beta)
        beta += torch.cholesky_solve(residual, factor)
    return beta[:-1].T * scale, mean + beta[-1]


def _factor(gram: Tensor, ridge: float) -> Tensor:
    gram.diagonal().add_(ridge)
    return torch.linalg.cholesky(gram)
