"""Real data beside the checkout, for the tests that want them: DETKIT_TEST_DATA, or ../shared/data."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("DETKIT_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def needs(name: str) -> pytest.MarkDecorator:
    """Skip a test where this file or folder of real data is not at hand."""
    return pytest.mark.skipif(not (DATA / name).exists(), reason=f"no {name} in {DATA}")
