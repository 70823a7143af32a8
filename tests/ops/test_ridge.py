import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from detkit import ops
from tests.ops.problems import problem


def by_scikit(features: Tensor, targets: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """One class, as R-CNN's code describes it: whitened targets, a column of ones, whitening undone."""
    x, y = features.double().numpy(), targets.double().numpy()
    mean = y.mean(0)
    values, vectors = np.linalg.eigh((y - mean).T @ (y - mean) / len(y))
    whiten = vectors @ np.diag((values + 0.001) ** -0.5) @ vectors.T
    model = Ridge(alpha=ridge, fit_intercept=False, solver="cholesky")
    model.fit(np.concatenate((x, np.ones((len(x), 1))), 1), (y - mean) @ whiten)
    beta = model.coef_.T @ np.linalg.inv(whiten)
    return torch.from_numpy(beta[:-1].T.copy()), torch.from_numpy(beta[-1] + mean)


@pytest.mark.parametrize("ridge", [1.0, 1000.0])
@pytest.mark.parametrize("memory", [1, 10**9])
def test_ridge_equals_scikit_learn_on_whitened_targets(
    ridge: float, memory: int, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """Classes of more and of fewer rows than features, of one row and of none; rows of no class."""
    monkeypatch.setattr("detkit.ops.ridge.GATHERED", memory)
    counts = torch.tensor([300, 20, 0, 1, 61, 18])
    labels = torch.cat((torch.arange(6).repeat_interleave(counts), torch.full((30,), -1)))
    labels = labels[torch.randperm(len(labels))]
    features, _ = problem(len(labels), 60, 4)
    mixed = torch.randn(4, 4) * torch.tensor([0.1, 0.1, 0.3, 0.3])
    targets = features[:, :4] * 0.05 + torch.randn(len(labels), 4) @ mixed + torch.tensor([0.5, 0, -1, 2])
    targets[labels < 0] = 1e6
    weight, bias = ops.fit_ridge(features.to(device), targets.to(device), labels.to(device), 6, ridge)
    assert weight.shape == (6, 4, 60)
    for k in range(6):
        if counts[k] == 0:
            assert (weight[k] == 0).all()
            assert (bias[k] == 0).all()
            continue
        expected, offset = by_scikit(features[labels == k], targets[labels == k], ridge)
        torch.testing.assert_close(weight[k].cpu().double(), expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(bias[k].cpu().double(), offset, rtol=1e-4, atol=1e-5)


def test_ridge_in_float64_is_exact() -> None:
    features, _ = problem(100, 20, 3)
    targets, labels = torch.randn(100, 4).double(), torch.zeros(100, dtype=torch.int64)
    weight, bias = ops.fit_ridge(features.double(), targets, labels, 1, 0.1)
    expected, offset = by_scikit(features, targets, 0.1)
    torch.testing.assert_close(weight[0], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(bias[0], offset, rtol=1e-9, atol=1e-12)


def test_ridge_of_nothing_and_wrong_arguments() -> None:
    nobody = torch.full((7,), -1)
    weight, bias = ops.fit_ridge(torch.rand(7, 5), torch.rand(7, 4), nobody, 3)
    assert (weight == 0).all()
    assert (bias == 0).all()
    assert ops.fit_ridge(torch.rand(0, 5), torch.rand(0, 4), nobody[:0], 2)[0].shape == (2, 4, 5)
    with pytest.raises(ValueError, match=r"expected features \(N, D\), targets \(N, T\) and labels \(N,\)"):
        ops.fit_ridge(torch.rand(7, 5), torch.rand(6, 4), nobody, 3)


def test_ridge_in_float32_is_good_to_rounding() -> None:
    """Without the second solve the error would be twenty times as large."""
    features, _ = problem(400, 200, 4)
    targets, labels = torch.randn(400, 4), torch.zeros(400, dtype=torch.int64)
    expected, _ = by_scikit(features, targets, 1.0)
    weight, _ = ops.fit_ridge(features, targets, labels, 1, 1.0)
    assert (weight[0].double() - expected).abs().max() < 2e-6 * expected.abs().max()
