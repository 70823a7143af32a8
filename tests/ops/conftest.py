"""Devices that the ops are tested on."""

from collections.abc import Iterator

import pytest
import torch

from tests.pretend import DEVICES, using


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    with using(request.param):
        yield torch.device(request.param)
