"""Fixtures of the cases: a wide terminal, and what sees a data set by all paths."""

from pathlib import Path

import pytest

from tests.data.cases.seen import Paths


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # tables are not folded


@pytest.fixture
def paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Paths:
    """All paths by which a user sees a data set."""
    return Paths(tmp_path / "made", capsys)
