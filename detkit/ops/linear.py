"""The linear stages of R-CNN and SPPNet: support vector machines and ridge regression, all classes at once."""

import warnings

import torch
from torch import Tensor

from detkit.ops.lbfgs import Curvature

# Width, in units of the margin, over which the hinge is rounded off while a round of multipliers lasts; a round ends
# when the gradient's share of the duality gap is below ROUND. Neither changes the result, only how soon it is there.
SMOOTH, ROUND = 0.1, 0.1
SEARCH = 10  # steps of a line search: a few small operations each, beside two passes over the features
GATHERED = 512 << 20  # bytes of features that fit_ridge copies at once, unless one class alone has more


def feature_scale(features: Tensor, target_norm: float = 20.0) -> Tensor:
    """Return the factor, a scalar, by which features (N, D) get a mean Euclidean norm of `target_norm`.

    R-CNN's and SPPNet's C and ridge are meant for features of mean norm 20 (R-CNN's code; one factor for all rows).
    """
    return target_norm / torch.linalg.vector_norm(features.float(), dim=1).mean()


@torch.no_grad()
def fit_svm(
    features: Tensor,
    labels: Tensor,
    C: float = 0.001,
    positive_weight: float = 2.0,
    bias: float = 10.0,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-4,
    iterations: int = 1000,
) -> tuple[Tensor, Tensor]:
    """Fit K linear SVMs to the same features; return weight (K, D) and bias (K,), so that z = x @ weight.T + bias.

    features: (N, D), float32 or float64; labels: (N, K), +1, -1, or 0 for rows that a class does not use. start: weight
    and bias to begin from, say those of fewer rows. With R-CNN's settings (section 2.3, and its code's liblinear) each
    class minimises

        1/2 |w|^2 + 1/2 (b / bias)^2 + C sum_i c_i max(0, 1 - y_i z_i),    c_i = positive_weight where y_i = 1, else 1:

    the bias is the weight of one more feature of value `bias`. Ends when the duality gap of every class is at most
    `tolerance` times its objective, which bounds how far the objective is from the best; warns where that takes more
    than `iterations`, each of which reads the features twice.

    The method: proximal multipliers on the hinge, each round minimised by L-BFGS. To a round's multipliers a (N, K) the
    hinge is max over a' in [0, C c_i] of a' r - (a' - a)^2 / (2 rho), r = 1 - y z, which is smooth, and its maximiser
    a' = clip(a + rho r) is the next round's a. Each a' is also feasible in the dual problem, whose objective
    sum a' - 1/2 |v|^2 needs just the v = sum a' y x that the gradient w - v is made of: the gap costs nothing.
    """
    if labels.shape[:1] != features.shape[:1] or labels.ndim != 2 or features.ndim != 2:
        raise ValueError(
            f"fit_svm: expected features (N, D) and labels (N, K), got {tuple(features.shape)} and "
            f"{tuple(labels.shape)}"
        )
    classes, dim = labels.shape[1], features.shape[1]
    y = labels.to(features)
    most = C * torch.where(y > 0, positive_weight, 1.0) * y.abs()  # the largest multiplier: 0 for unused rows
    rho = C / SMOOTH

    def margins(weights: Tensor) -> Tensor:
        return torch.addmm(bias * weights[:, -1], features, weights[:, :-1].T)

    def combine(coefficients: Tensor) -> Tensor:
        return torch.cat((coefficients.T @ features, bias * coefficients.sum(0).unsqueeze(1)), 1)

    w = features.new_zeros(classes, dim + 1)
    if start is not None:
        w = torch.cat((start[0].to(w), start[1].to(w).unsqueeze(1) / bias), 1)
    z = margins(w)
    anchor = torch.zeros_like(most)
    next_round = torch.zeros(classes, dtype=torch.bool, device=w.device)
    best, lowest, highest = w, w.new_full((classes,), torch.inf), w.new_zeros(classes)
    curvature = Curvature()
    for _ in range(iterations):
        short = 1 - y * z
        anchor = torch.where(next_round, _clip(anchor + rho * short, most), anchor)
        multipliers = _clip(anchor + rho * short, most)
        v = combine(y * multipliers)
        gradient = w - v

        primal = 0.5 * w.square().sum(1) + (most * short.clamp(min=0)).sum(0)
        dual = multipliers.sum(0) - 0.5 * v.square().sum(1)
        best = torch.where((primal < lowest).unsqueeze(1), w, best)
        lowest, highest = torch.minimum(lowest, primal), torch.maximum(highest, dual)
        # host sync: one an iteration, to stop; a GPU spends far longer on the two passes over the features
        if bool((lowest - highest <= tolerance * lowest).all()):
            break
        # the gap is |gradient|^2 / 2, what this round has still to do, plus what only later rounds can do
        todo = 0.5 * gradient.square().sum(1)
        next_round = todo < ROUND * (primal - dual - todo)

        step = curvature.direction(w, gradient)
        along = margins(step)
        length = _line_search(w, step, anchor + rho * short, rho, y * along, most)
        w = w + length.unsqueeze(1) * step
        z = z + length * along
    else:
        gap = float(((lowest - highest) / lowest).nan_to_num().max())
        warnings.warn(f"fit_svm: relative gap {gap:.1e} after {iterations} iterations", RuntimeWarning, stacklevel=2)
    return best[:, :-1].contiguous(), bias * best[:, -1]


def _clip(values: Tensor, most: Tensor) -> Tensor:
    return torch.minimum(values.clamp(min=0), most)


def _line_search(w: Tensor, step: Tensor, raised: Tensor, rho: float, along: Tensor, most: Tensor) -> Tensor:
    """Return the length (K,) of the step (K, D) from w at which a round's objective is least.

    Its derivative at length t is w step + t |step|^2 - sum_i clip(raised_i - t rho along_i) along_i, which rises with
    t, in pieces that are linear: Newton's method, kept between the lengths already known to be too short and too long.
    raised, along, most: (N, K).
    """
    offset, square = (w * step).sum(1), step.square().sum(1)
    length, short, long = torch.ones_like(offset), torch.zeros_like(offset), torch.full_like(offset, torch.inf)
    tiny = torch.finfo(w.dtype).tiny
    for _ in range(SEARCH):
        values = raised - (length * rho) * along
        free = (values > 0) & (values < most)
        slope = offset + length * square - (_clip(values, most) * along).sum(0)
        bend = square + rho * (free * along.square()).sum(0)
        short = torch.where(slope <= 0, length, short)
        long = torch.where(slope > 0, length, long)
        newton = length - slope / bend.clamp(min=tiny)
        between = torch.where(long.isinf(), 2 * length, (short + long) / 2)
        length = torch.where((newton >= short) & (newton <= long), newton, between)
    return length


@torch.no_grad()
def fit_ridge(
    features: Tensor, targets: Tensor, owner: Tensor, classes: int, ridge: float = 1000.0
) -> tuple[Tensor, Tensor]:
    """Fit a linear map of features to box deltas for each class; return weight (K, T, D) and bias (K, T), so that class
    k predicts x @ weight[k].T + bias[k] (R-CNN, appendix C, and its code).

    features: (N, D), float32 or float64; targets: (N, T), T = 4 deltas; owner: (N,) int64, the class of each row, or -1
    for none. A class minimises |Y - mean - A beta|^2 + ridge |beta|^2, where A is the features and a column of ones:
    the constant is regularised too. A class without rows predicts 0.

    R-CNN's code also whitens the targets (Y T) and undoes it in predictions: as all deltas share one ridge, beta is
    linear in Y and T cancels, so that this is the same map without it.
    """
    if targets.ndim != 2 or features.ndim != 2 or not len(features) == len(targets) == len(owner):
        raise ValueError(
            f"fit_ridge: expected features (N, D), targets (N, T) and owner (N,), got {tuple(features.shape)}, "
            f"{tuple(targets.shape)} and {tuple(owner.shape)}"
        )
    dim, outputs = features.shape[1], targets.shape[1]
    targets = targets.to(features)
    order = owner.argsort(stable=True)
    counts = torch.bincount(owner[owner >= 0], minlength=classes)  # host sync
    starts = (owner < 0).sum() + counts.cumsum(0) - counts
    weight, offset = features.new_zeros(classes, outputs, dim), features.new_zeros(classes, outputs)

    # Classes of like many rows are padded to the largest of them and solved together, as many as memory allows.
    sizes, largest = counts.sort(descending=True)
    lengths = sizes.tolist()  # host sync
    first = 0
    while first < classes and lengths[first] > 0:
        rows = lengths[first]
        chunk_size = max(1, GATHERED // (rows * dim * features.element_size()))
        group = largest[first : first + chunk_size]
        place = torch.arange(rows, device=owner.device)
        real = place < counts[group].unsqueeze(1)
        index = order[torch.where(real, starts[group].unsqueeze(1) + place, 0)]
        x, t = features[index] * real.unsqueeze(-1), targets[index]
        mean = (t * real.unsqueeze(-1)).sum(1) / counts[group].clamp(min=1).unsqueeze(1)
        x = torch.cat((x, real.unsqueeze(-1).to(x)), -1)
        beta = _solve_ridge(x, (t - mean.unsqueeze(1)) * real.unsqueeze(-1), ridge)
        weight[group] = beta[:, :-1].transpose(1, 2)
        offset[group] = mean + beta[:, -1]
        first += chunk_size
    return weight, offset


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
