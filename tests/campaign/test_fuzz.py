"""Damaged files of every kind: each is read as it is meant, or refused in one line.

The cases are the first ones of `python -m tests.campaign fuzz`; another DETKIT_TEST_SEED draws others.
"""

import os
from pathlib import Path

import pytest

from tests.campaign.children import Children
from tests.campaign.formats import FORMATS
from tests.campaign.fuzz import fuzz

SHOWN = 800  # characters of each kind of failure


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(name: str, children: Children, tmp_path: Path) -> None:
    tally = fuzz(children, name, FORMATS[name].short, os.environ.get("DETKIT_TEST_SEED", "0"), tmp_path)
    ends = [path.read_text()[-SHOWN:] for path in sorted(tmp_path.glob("*/what.txt"))]
    assert not tally.faults, "\n\n".join([str(tally), *ends, f"the files are in {tmp_path}"])
