"""Fixtures: small data sets in VOC layout, and an index cache of each test's own."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.data.roots import make_root, xml


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def small_root(tmp_path: Path) -> Path:
    """Nine images: one without objects, one with a difficult object."""
    annotations = {
        f"{i:06d}": xml(
            [("cat", (1 + i, 2, 20 + i, 30), int(i == 3), 0)] * (i > 0) + [("dog", (5, 5, 40, 40))] * (i > 4)
        )
        for i in range(9)
    }
    return make_root(tmp_path / "small", annotations, {"trainval": list(annotations), "test": ["000001", "000003"]})


@pytest.fixture
def one(tmp_path: Path) -> Callable[..., Path]:
    """Make a root of a single image `a` from its objects."""

    def make(objects: Sequence, **options) -> Path:
        return make_root(tmp_path / "one", {"a": xml(objects, **options)}, {"all": ["a"]})

    return make
