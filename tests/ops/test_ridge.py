import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from detkit import ops
from tests.ops.problems import problem


def by_scikit(features: Tensor, targets: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """As R-CNN's code describes it: whitened targets, a column of ones, whitening undone."""
    x, y = features.double().numpy(), targets.double().numpy()
    mean = y.mean(0)
    values, vectors = np.linalg.eigh((y - mean).T @ (y - mean) / len(y))
    whiten = vectors @ np.diag((values + 0.001) ** -0.5) @ vectors.T
    model = Ridge(alpha=ridge, fit_intercept=False, solver="cholesky")
    model.fit(np.concatenate((x, np.ones((len(x), 1))), 1), (y - mean) @ whiten)
    beta = model.coef_.T @ np.linalg.inv(whiten)
    return torch.from_numpy(beta[:-1].T.copy()), torch.from_numpy(beta[-1] + mean)


def pairs(count: int) -> tuple[Tensor, Tensor]:
    """Return features (count, 60) and correlated targets."""
    features, _ = problem(count, 60, 4)
    mixed = torch.randn(4, 4) * torch.tensor([0.1, 0.1, 0.3, 0.3])
    return features, features[:, :4] * 0.05 + torch.randn(count, 4) @ mixed + torch.tensor([0.5, 0, -1, 2])


@pytest.mark.parametrize("ridge", [1.0, 1000.0])
@pytest.mark.parametrize("chunk", [1, 7 * 60 * 8, 10**9], ids=["row", "seven", "all"])
@pytest.mark.parametrize("count", [300, 61, 60, 20, 1])
def test_ridge_equals_scikit_learn_on_whitened_targets(
    count: int, chunk: int, ridge: float, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """Of more and of fewer rows than features, read in chunks of any size; exact in float64."""
    monkeypatch.setattr("detkit.ops.ridge.CHUNK", chunk)
    features, targets = pairs(count)
    expected, offset = by_scikit(3.7 * features.double(), targets, ridge)
    for dtype, accuracy in ((torch.float32, 1e-3), (torch.float64, 1e-9)):
        weight, bias = ops.fit_ridge(features.to(device, dtype), targets.to(device, dtype), ridge, 3.7)
        assert weight.dtype == dtype
        torch.testing.assert_close(weight.cpu().double() / 3.7, expected, rtol=accuracy, atol=accuracy / 100)
        torch.testing.assert_close(bias.cpu().double(), offset, rtol=accuracy, atol=accuracy / 100)


def test_ridge_of_nothing_and_wrong_arguments() -> None:
    weight, bias = ops.fit_ridge(torch.rand(0, 5), torch.rand(0, 4))
    assert weight.shape == (4, 5)
    assert not weight.any()
    assert not bias.any()
    with pytest.raises(ValueError, match=r"expected features \(N, D\) and targets \(N, T\), got \(7, 5\) and \(6, 4\)"):
        ops.fit_ridge(torch.rand(7, 5), torch.rand(6, 4))


@pytest.mark.parametrize(("count", "error"), [(400, 2e-6), (160, 3e-6)])
def test_ridge_in_float32_is_good_to_rounding(count: int, error: float) -> None:
    """Without the second solve it would be twenty times as large, or four."""
    features, _ = problem(count, 200, 4)
    targets = torch.randn(count, 4)
    expected, _ = by_scikit(features, targets, 1.0)
    weight, _ = ops.fit_ridge(features, targets, 1.0)
    assert (weight.double() - expected).abs().max() < error * expected.abs().max()
