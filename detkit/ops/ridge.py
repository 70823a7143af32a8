"""Ridge regression of R-CNN's and SPPNet's box deltas, all classes at once."""

import torch
from torch import Tensor

GATHERED = 512 << 20  # bytes of features that fit_ridge copies at once, unless one class alone has more


@torch.no_grad()
def fit_ridge(
    features: Tensor, targets: Tensor, labels: Tensor, classes: int, ridge: float = 1000.0
) -> tuple[Tensor, Tensor]:
    """Fit a linear map of features to box deltas for each class; return weight (K, T, D) and bias (K, T), so that class
    k predicts x @ weight[k].T + bias[k] (R-CNN, appendix C, and its code).

    features: (N, D), float32 or float64; targets: (N, T), T = 4 deltas; labels: (N,) int64, the class of each row, -1
    for none. A class minimises |Y - mean - A beta|^2 + ridge |beta|^2, where A is the features and a column of ones:
    the constant is regularised too. A class without rows predicts 0.

    R-CNN's code also whitens the targets (Y T) and undoes it in predictions: as all deltas share one ridge, beta is
    linear in Y and T cancels, so that this is the same map without it.
    """
    if targets.ndim != 2 or features.ndim != 2 or not len(features) == len(targets) == len(labels):
        raise ValueError(
            f"fit_ridge: expected features (N, D), targets (N, T) and labels (N,), got {tuple(features.shape)}, "
            f"{tuple(targets.shape)} and {tuple(labels.shape)}"
        )
    dim, outputs = features.shape[1], targets.shape[1]
    targets = targets.to(features)
    by_class = labels.argsort(stable=True)  # rows of no class come first
    counts = torch.bincount(labels[labels >= 0], minlength=classes)  # host sync
    starts = (labels < 0).sum() + counts.cumsum(0) - counts
    weight = features.new_zeros(classes, outputs, dim)
    bias = features.new_zeros(classes, outputs)

    # Classes of like many rows are padded to the largest of them and solved together, as many as memory allows.
    sizes, largest_first = counts.sort(descending=True)
    lengths = sizes.tolist()  # host sync
    first = 0
    while first < classes and lengths[first] > 0:
        rows = lengths[first]
        chunk_size = max(1, GATHERED // (rows * dim * features.element_size()))
        chunk = largest_first[first : first + chunk_size]
        rank = torch.arange(rows, device=labels.device)
        filled = rank < counts[chunk].unsqueeze(1)
        index = by_class[torch.where(filled, starts[chunk].unsqueeze(1) + rank, 0)]
        filled = filled.unsqueeze(-1)  # (G, N, 1): 0 in what pads
        x, y = features[index] * filled, targets[index]
        mean = (y * filled).sum(1) / counts[chunk].clamp(min=1).unsqueeze(1)
        x = torch.cat((x, filled.to(x)), -1)
        beta = _solve_ridge(x, (y - mean.unsqueeze(1)) * filled, ridge)
        weight[chunk] = beta[:, :-1].transpose(1, 2)
        bias[chunk] = mean + beta[:, -1]
        first += chunk_size
    return weight, bias


def _solve_ridge(x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Minimise |y - x beta|^2 + ridge |beta|^2 for x (G, N, D) and y (G, N, T); returns beta (G, D, T).

    By Cholesky of whichever Gram matrix is smaller. In float32 that alone is good to about 1e-7 |x|^2 / ridge; the
    second solve, for the residual of the data themselves, brings it back to rounding.
    """
    xt = x.transpose(1, 2)
    wide = x.shape[1] <= x.shape[2]
    gram = x @ xt if wide else xt @ x
    gram.diagonal(dim1=1, dim2=2).add_(ridge)
    factor = torch.linalg.cholesky(gram)
    if wide:
        alpha = torch.cholesky_solve(y, factor)
        alpha += torch.cholesky_solve(y - x @ (xt @ alpha) - ridge * alpha, factor)
        return xt @ alpha
    beta = torch.cholesky_solve(xt @ y, factor)
    return beta + torch.cholesky_solve(xt @ (y - x @ beta) - ridge * beta, factor)
