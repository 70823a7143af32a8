"""Settings of every test."""

import os

import pytest
from hypothesis import settings

# The same examples in every run, so that a failure is the change's; `explore` draws new ones:
#   HYPOTHESIS_PROFILE=explore python -m pytest
# No deadline: how long an example takes is the machine's.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: more threads would only stand in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="contracts with values for every model on every backbone")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)
