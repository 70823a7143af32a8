"""Linear support vector machines of R-CNN and SPPNet, all classes at once."""

import warnings

import torch
from torch import Tensor

from detkit.ops.lbfgs import LBFGS

# Neither of these two changes the result, only how soon it is reached.
SMOOTH = 0.1  # width, in units of the margin, over which the hinge is rounded off while a round of multipliers lasts
ROUND = 0.1  # a round ends when the gradient's share of the duality gap is below this
LINE_SEARCH_STEPS = 10  # a few small operations each, beside two passes over the features


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
    upper = C * torch.where(y > 0, positive_weight, 1.0) * y.abs()  # bound of the multipliers: 0 for unused rows
    rho = C / SMOOTH

    def margins(weights: Tensor) -> Tensor:
        return torch.addmm(bias * weights[:, -1], features, weights[:, :-1].T)

    def combine(coefficients: Tensor) -> Tensor:
        return torch.cat((coefficients.T @ features, bias * coefficients.sum(0).unsqueeze(1)), 1)

    w = features.new_zeros(classes, dim + 1)
    if start is not None:
        w = torch.cat((start[0].to(w), start[1].to(w).unsqueeze(1) / bias), 1)
    z = margins(w)
    anchor = torch.zeros_like(upper)  # the multipliers of the last round
    next_round = torch.zeros(classes, dtype=torch.bool, device=w.device)
    best = w
    best_primal = w.new_full((classes,), torch.inf)
    best_dual = w.new_zeros(classes)
    lbfgs = LBFGS()
    for _ in range(iterations):
        violation = 1 - y * z  # of the margin
        anchor = torch.where(next_round, _clip(anchor + rho * violation, upper), anchor)
        multipliers = _clip(anchor + rho * violation, upper)
        v = combine(y * multipliers)
        gradient = w - v

        primal = 0.5 * w.square().sum(1) + (upper * violation.clamp(min=0)).sum(0)
        dual = multipliers.sum(0) - 0.5 * v.square().sum(1)
        best = torch.where((primal < best_primal).unsqueeze(1), w, best)
        best_primal = torch.minimum(best_primal, primal)
        best_dual = torch.maximum(best_dual, dual)
        # host sync: one an iteration, to stop; a GPU spends far longer on the two passes over the features
        if bool((best_primal - best_dual <= tolerance * best_primal).all()):
            break
        # the gap is |gradient|^2 / 2, what this round has still to do, plus what only later rounds can do
        gradient_gap = 0.5 * gradient.square().sum(1)
        next_round = gradient_gap < ROUND * (primal - dual - gradient_gap)

        step = lbfgs.direction(w, gradient)
        step_margins = margins(step)
        length = _line_search(w, step, anchor + rho * violation, rho, y * step_margins, upper)
        w = w + length.unsqueeze(1) * step
        z = z + length * step_margins
    else:
        gap = float(((best_primal - best_dual) / best_primal).nan_to_num().max())
        warnings.warn(f"fit_svm: relative gap {gap:.1e} after {iterations} iterations", RuntimeWarning, stacklevel=2)
    return best[:, :-1].contiguous(), bias * best[:, -1]


def _clip(values: Tensor, upper: Tensor) -> Tensor:
    return torch.minimum(values.clamp(min=0), upper)


def _line_search(w: Tensor, step: Tensor, raised: Tensor, rho: float, along: Tensor, upper: Tensor) -> Tensor:
    """Return the length (K,) of the step (K, D) from w at which a round's objective is smallest.

    Its derivative at length t is w step + t |step|^2 - sum_i clip(raised_i - t rho along_i) along_i, which rises with
    t, in pieces that are linear: Newton's method, kept between the lengths already known to be too short and too long.
    raised, along, upper: (N, K).
    """
    offset = (w * step).sum(1)
    square = step.square().sum(1)
    length = torch.ones_like(offset)
    short = torch.zeros_like(offset)
    long = torch.full_like(offset, torch.inf)
    tiny = torch.finfo(w.dtype).tiny
    for _ in range(LINE_SEARCH_STEPS):
        values = raised - (length * rho) * along
        free = (values > 0) & (values < upper)
        slope = offset + length * square - (_clip(values, upper) * along).sum(0)
        slope_change = square + rho * (free * along.square()).sum(0)
        short = torch.where(slope <= 0, length, short)
        long = torch.where(slope > 0, length, long)
        newton = length - slope / slope_change.clamp(min=tiny)
        between = torch.where(long.isinf(), 2 * length, (short + long) / 2)
        length = torch.where((newton >= short) & (newton <= long), newton, between)
    return length
