"""Settings of every test."""

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: more threads would only stand in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)
