"""One server of child processes for all tests of the campaign in a process."""

from collections.abc import Iterator

import pytest

from tests.campaign.children import Children


@pytest.fixture(scope="session")
def children() -> Iterator[Children]:
    with Children() as children:
        yield children
