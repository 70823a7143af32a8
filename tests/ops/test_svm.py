import pytest
import torch
from sklearn.svm import LinearSVC
from torch import Tensor

from detkit import ops
from tests.ops.problems import problem

SETTINGS = {"C": 0.001, "positive_weight": 2.0, "bias": 10.0}


def objective(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor,
    C: float,
    positive_weight: float,
    feature: float,
) -> Tensor:
    """Each class's primal objective (K,), float64, from its definition; feature: the value of the bias feature."""
    x, y, w, b = features.double(), labels.double(), weight.double(), bias.double()
    cost = C * torch.where(y > 0, positive_weight, 1.0) * (y != 0)
    hinge = (1 - y * (x @ w.T + b)).clamp(min=0)
    return w.square().sum(1) / 2 + (b / feature).square() / 2 + (cost * hinge).sum(0)


def by_liblinear(
    features: Tensor, labels: Tensor, C: float, positive_weight: float, bias: float
) -> tuple[Tensor, Tensor]:
    """Class by class, on the rows it uses, to far below the tolerance that is tested."""
    weights, biases = [], []
    for column in labels.T:
        used = column != 0
        svm = LinearSVC(
            loss="hinge",
            dual=True,
            C=C,
            intercept_scaling=bias,
            class_weight={1: positive_weight, -1: 1.0},
            tol=1e-6,
            max_iter=100_000,
            random_state=0,
        )
        svm.fit(features[used].double().numpy(), column[used].numpy())
        weights.append(torch.from_numpy(svm.coef_[0]))
        biases.append(torch.from_numpy(svm.intercept_)[0])
    return torch.stack(weights), torch.stack(biases)


@pytest.mark.parametrize(
    ("C", "positive_weight", "bias"), [(0.001, 2.0, 10.0), (0.1, 1.0, 1.0), (0.0001, 5.0, 10.0)], ids=str
)
@pytest.mark.parametrize("dim", [40, 300])
def test_svm_equals_liblinear(C: float, positive_weight: float, bias: float, dim: int, device: torch.device) -> None:
    features, labels = problem(400, dim, 4)
    weight, offset = ops.fit_svm(features.to(device), labels.to(device), C, positive_weight, bias)
    assert weight.shape == (4, dim)
    assert offset.shape == (4,)
    values = C, positive_weight, bias
    mine = objective(features, labels, weight.cpu(), offset.cpu(), *values)
    theirs = objective(features, labels, *by_liblinear(features, labels, *values), *values)
    assert (mine <= theirs * (1 + 1e-4)).all()
    assert (theirs <= mine * (1 + 1e-4)).all()  # else the oracle would be the one that is wrong


def test_svm_finds_the_same_map() -> None:
    """A tight gap pins the solution: |w - best|^2 / 2 <= gap."""
    features, labels = problem(300, 30, 3)
    weight, offset = ops.fit_svm(features.double(), labels, **SETTINGS, tolerance=1e-9)
    expected, bias = by_liblinear(features, labels, *SETTINGS.values())
    torch.testing.assert_close(weight, expected, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(offset, bias, rtol=1e-2, atol=1e-3)


def test_svm_leaves_out_rows_with_label_zero() -> None:
    features, labels = problem(400, 50, 3)
    labels[torch.rand(400, 3) < 0.4] = 0
    values = SETTINGS.values()
    mine = objective(features, labels, *ops.fit_svm(features, labels, **SETTINGS), *values)
    theirs = objective(features, labels, *by_liblinear(features, labels, *values), *values)
    assert ((mine - theirs).abs() <= 1e-4 * theirs).all()
    features[:100] = 1e3  # rows that nobody uses
    labels[:100] = 0
    with_rows = objective(features, labels, *ops.fit_svm(features, labels, **SETTINGS), *values)
    without = objective(features, labels, *ops.fit_svm(features[100:], labels[100:], **SETTINGS), *values)
    assert ((with_rows - without).abs() <= 1e-4 * without).all()


def test_svm_of_each_class_does_not_depend_on_the_others() -> None:
    features, labels = problem(300, 60, 5)
    together = objective(features, labels, *ops.fit_svm(features, labels), *SETTINGS.values())
    for k in range(5):
        one = labels[:, k : k + 1]
        alone = objective(features, one, *ops.fit_svm(features, one), *SETTINGS.values())
        assert (together[k] - alone).abs() <= 1e-4 * alone


def test_svm_starts_from_given_weights() -> None:
    """From the solution it is done at once; from another problem's weights it still gets there."""
    features, labels = problem(300, 60, 3)
    weight, bias = ops.fit_svm(features, labels, tolerance=1e-6)
    best = objective(features, labels, weight, bias, *SETTINGS.values())
    for factor in (1.0, -3.0):
        again = ops.fit_svm(features, labels, start=(weight * factor, bias * factor))
        found = objective(features, labels, *again, *SETTINGS.values())
        assert ((found - best).abs() <= 1.1e-4 * best).all()


def test_svm_of_hopeless_classes() -> None:
    """No rows at all, one kind of label only, labels that are the same point: no NaN, and the optimum."""
    features, labels = problem(200, 20, 4)
    labels[:, 0] = 0
    labels[:, 1] = -1
    labels[:, 2] = 1
    weight, bias = ops.fit_svm(features, labels)
    assert weight.isfinite().all()
    assert (weight[0] == 0).all()
    assert bias[0] == 0
    assert (features @ weight[1] + bias[1] < -0.9).all()
    assert (features @ weight[2] + bias[2] > 0.9).all()
    same = torch.ones(6, 5)
    y = torch.tensor([[1], [-1], [1], [-1], [1], [-1]])
    found = objective(same, y, *ops.fit_svm(same, y), *SETTINGS.values())
    expected = objective(same, y, *by_liblinear(same, y, *SETTINGS.values()), *SETTINGS.values())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    empty = ops.fit_svm(features[:0], labels[:0])
    assert (empty[0] == 0).all()
    assert ops.fit_svm(features, labels[:, :0])[0].shape == (0, 20)


def test_svm_says_when_it_is_not_done() -> None:
    features, labels = problem(300, 30, 2)
    with pytest.warns(RuntimeWarning, match=r"relative gap \S+ after 3 iterations"):
        ops.fit_svm(features, labels, iterations=3)
    with pytest.raises(ValueError, match=r"expected features \(N, D\) and labels \(N, K\)"):
        ops.fit_svm(features, labels[:5])


def test_feature_scale(device: torch.device) -> None:
    features = torch.rand(50, 30, device=device) * torch.rand(50, 1, device=device) * 100
    factor = ops.feature_scale(features)
    assert factor.shape == ()
    assert float((features * factor).norm(dim=1).mean()) == pytest.approx(20, rel=1e-5)
    assert float((features * ops.feature_scale(features, 7)).norm(dim=1).mean()) == pytest.approx(7, rel=1e-5)
