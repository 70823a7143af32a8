import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.ops.sorting import argsort_descending, ranked_rows

# no subnormal numbers: other tests in this process may have them flushed to 0
NUMBERS = st.floats(width=16, allow_nan=False, allow_subnormal=False) | st.sampled_from([0.0, -0.0, 0.5, -2.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@given(values=st.lists(NUMBERS, max_size=60))
@settings(deadline=None)
def test_order_is_that_of_a_stable_sort(dtype: torch.dtype, values: list[float]) -> None:
    scores = torch.tensor(values, dtype=dtype)
    assert argsort_descending(scores).tolist() == sorted(range(len(values)), key=lambda index: -values[index])


def test_float64_is_compared_in_full() -> None:
    assert argsort_descending(torch.tensor([1.0, 1 + 1e-12, -1 - 1e-12, -1], dtype=torch.float64)).tolist() == [
        1,
        0,
        3,
        2,
    ]


@given(seed=st.integers(0, 2**32 - 1), limit=st.integers(0, 8))
@settings(deadline=None)
def test_rows_hold_each_keys_candidates_in_order(seed: int, limit: int) -> None:
    random = np.random.default_rng(seed)
    key = torch.from_numpy(random.integers(0, 5, random.integers(0, 30)))
    order = torch.from_numpy(random.permutation(len(key))[: random.integers(0, len(key) + 1)])
    rows, filled = ranked_rows(key, 5, order, limit)
    assert rows.shape == filled.shape == (5, min(limit, int(torch.bincount(key[order], minlength=5).max())))
    for number in range(5):
        expected = [index for index in order.tolist() if key[index] == number][:limit]
        assert rows[number][filled[number]].tolist() == expected
