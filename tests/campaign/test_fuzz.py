"""Damaged files of every kind: each is read as it is meant, or refused in one line."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.campaign.children import Children
from tests.campaign.formats import FORMATS
from tests.campaign.fuzz import Fuzzer
from tests.campaign.known import FORMATS_FAILING


def _parameter(name: str):
    failing = FORMATS_FAILING.get(name)
    marks = [pytest.mark.xfail(strict=False, reason=failing)] if failing else []
    return pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", [_parameter(name) for name in FORMATS])
def test_damaged_files(name: str, children: Children, tmp_path: Path) -> None:
    fuzzer = Fuzzer(children, name, tmp_path / name)
    phases = [Phase.explicit, Phase.generate] if name in FORMATS_FAILING else list(Phase)

    @settings(max_examples=FORMATS[name].short, phases=phases, suppress_health_check=list(HealthCheck))
    @given(random=st.randoms(use_true_random=False))
    def read_damaged(random: Random) -> None:
        files = fuzzer.draw(random)
        outcome = fuzzer.read(files)
        assert not outcome.fault, f"{outcome.place} {outcome.fault}\n{files}\n{outcome.details}"

    read_damaged()
