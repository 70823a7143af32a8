"""Features on disk: what is read back, and what stays where a run goes on."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.errors import UserError
from detkit.models.pairs import Pairs

NONE = torch.zeros(3).long()


def some(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=random)
    return torch.rand(count, 5, generator=random), torch.rand(count, 4, generator=random), labels


def check(pairs: Pairs, *expected: tuple[Tensor, Tensor, Tensor]) -> None:
    """Of each class all rows are there, in order, and slices of them."""
    features, deltas, labels = (torch.cat(part) for part in zip(*expected))
    assert torch.equal(pairs.counts, torch.bincount(labels))
    for label in range(3):
        file, found = pairs.of_class(label)
        rows = features[labels == label]
        assert file.shape == rows.shape
        assert torch.equal(found, deltas[labels == label])
        assert torch.equal(file[0 : len(rows)], rows)
        assert torch.equal(file[3:7], rows[3:7])
        assert torch.equal(file[len(rows) - 1 : len(rows) + 9], rows[-1:])


def test_what_was_added_is_read_back(tmp_path: Path) -> None:
    pairs = Pairs(tmp_path / "pairs", 5, NONE)
    batches = [some(20, 0), some(0, 1), some(31, 2)]
    for batch in batches:
        pairs.add(*batch)
    check(pairs, *batches)
    pairs.remove()
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_from_what_it_saved(tmp_path: Path) -> None:
    """What was added after it is dropped, also where nothing was saved."""
    pairs = Pairs(tmp_path / "pairs", 5, NONE)
    pairs.add(*some(9, 5))
    pairs = Pairs(tmp_path / "pairs", 5, NONE)
    pairs.add(*some(20, 0))
    pairs.flush()
    saved = pairs.counts.clone()
    pairs.add(*some(15, 1))
    pairs = Pairs(tmp_path / "pairs", 5, saved)
    pairs.add(*some(15, 2))
    check(pairs, some(20, 0), some(15, 2))


@pytest.mark.parametrize("fault", ["short", "missing"])
def test_features_that_are_gone_are_refused(fault: str, tmp_path: Path) -> None:
    """And nothing else is cut before."""
    pairs = Pairs(tmp_path, 5, NONE)
    pairs.add(*some(30, 0))
    counts = torch.tensor([1, 2, 3])
    path = tmp_path / "2"
    content = path.read_bytes()
    path.unlink() if fault == "missing" else path.write_bytes(content[: 3 * 9 * 4 - 1])
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=rf"^{path}: has fewer regions than last.pt counts; start a new run$"):
        Pairs(tmp_path, 5, counts)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = Pairs(tmp_path, 5, NONE)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(UserError, match=rf"^{tmp_path}: features of the box regression: No space left on device$"):
        pairs.add(*some(5, 0))
