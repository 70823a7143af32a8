import pytest
import torch

from detkit.ops import sample


def masks(seed: int, batch: int = 4, count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    kind = torch.randint(3, (batch, count), generator=torch.Generator().manual_seed(seed))
    return kind == 0, kind == 1


@pytest.mark.parametrize("number", [0, 1, 8, 20, 60, 500])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
def test_numbers_drawn(number: int, fraction: float) -> None:
    positive, negative = masks(number)
    positive[0], negative[1] = False, False
    positive[2] = negative[2] = False
    index, valid = sample(positive, negative, number, fraction)
    assert index.shape == valid.shape == (4, min(number, 60))
    for row in range(4):
        drawn = index[row][valid[row]]
        assert len(drawn.unique()) == len(drawn)
        positives = int(positive[row][drawn].sum())
        assert positives == min(int(number * fraction), int(positive[row].sum()))
        assert len(drawn) - positives == min(number - positives, int(negative[row].sum()))
        assert (positive | negative)[row][drawn].all()
        # positives first, then negatives, then nothing
        assert positive[row][drawn[:positives]].all()
        assert valid[row].int().diff().le(0).all()


def test_every_candidate_is_as_likely() -> None:
    torch.manual_seed(0)
    positive = torch.zeros(2000, 10, dtype=torch.bool)
    positive[:, :5] = True
    index, valid = sample(positive, ~positive, 4, 0.5)
    assert valid.all()
    share = torch.bincount(index.flatten(), minlength=10) / 2000
    torch.testing.assert_close(share, torch.full((10,), 0.4), atol=0.05, rtol=0)


def test_nothing_to_draw_from() -> None:
    empty = torch.zeros(2, 0, dtype=torch.bool)
    index, valid = sample(empty, empty, 8, 0.5)
    assert index.shape == valid.shape == (2, 0)
    index, valid = sample(empty.new_zeros(0, 5), empty.new_zeros(0, 5), 3, 0.5)
    assert index.shape == (0, 3)
