"""Truncated SVD against numpy's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.ops import svd, truncated_svd


def matrix(rows: int, columns: int, seed: int = 0, decay: float = 0.0) -> torch.Tensor:
    """A random matrix whose singular values fall by exp(-decay) each."""
    draw = np.random.default_rng(seed)
    left, _ = np.linalg.qr(draw.standard_normal((rows, min(rows, columns))))
    right, _ = np.linalg.qr(draw.standard_normal((columns, min(rows, columns))))
    return torch.from_numpy(left * np.exp(-decay * np.arange(left.shape[1])) @ right.T).float()


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([0, 0.02, 0.1, 0.4, 1]), st.integers(0, 99), st.data())
@settings(max_examples=80)
def test_it_is_the_best_approximation_of_its_rank(rows, columns, decay, seed, data):
    weight = matrix(rows, columns, seed, decay)
    rank = data.draw(st.integers(1, min(rows, columns)))
    first, second, error = truncated_svd(weight, rank)
    assert first.shape == (rank, columns)
    assert second.shape == (rows, rank)
    assert first.dtype == second.dtype == torch.float32
    # Eckart and Young, by numpy in float64
    u, values, v = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    norm = np.linalg.norm(values)
    assert error == pytest.approx(np.linalg.norm(values[rank:]) / norm, abs=2e-7)
    product = second.double().numpy() @ first.double().numpy()
    assert np.linalg.norm(product - weight.double().numpy()) / norm == pytest.approx(error, abs=1e-6)
    # U_t is orthonormal, and S_t V_t' has the singular values for lengths, the largest first
    np.testing.assert_allclose(np.linalg.norm(first.double().numpy(), axis=1), values[:rank], atol=1e-6)
    gram = (second.T @ second).numpy()[values[:rank] > 1e-5][:, values[:rank] > 1e-5]
    np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-4)
    if decay > 0.3:  # well apart, so unique
        best = u[:, :rank] * values[:rank] @ v[:rank]
        np.testing.assert_allclose(product, best, atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 70), (70, 20)])
def test_slices_change_nothing(shape, monkeypatch):
    weight = matrix(*shape, decay=0.2)
    whole = truncated_svd(weight, 5)
    monkeypatch.setattr(svd, "SLICE", 16)
    parts = truncated_svd(weight, 5)
    torch.testing.assert_close(parts.second @ parts.first, whole.second @ whole.first)
    assert parts.error == pytest.approx(whole.error)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_nothing_and_little(shape):
    zero = truncated_svd(torch.zeros(shape), 2)
    assert zero.error == 0
    assert not (zero.second @ zero.first).any()
    assert zero.first.isfinite().all()
    assert zero.second.isfinite().all()
    weight = matrix(*shape) * 1e-30  # its squares are no float32 numbers
    first, second, error = truncated_svd(weight, 4)
    torch.testing.assert_close((second @ first) * 1e30, weight * 1e30)
    assert error == 0
    single = torch.ones(shape)
    first, second, error = truncated_svd(single, 3)  # of rank 1
    torch.testing.assert_close(second @ first, single)
    assert error < 1e-7


@pytest.mark.parametrize("rank", [0, 5])
def test_a_rank_that_there_is_not(rank):
    with pytest.raises(ValueError, match=f"rank {rank} of a weight of shape"):
        truncated_svd(torch.ones(4, 9), rank)
