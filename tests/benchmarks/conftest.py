from tests.toys.fixtures import *  # noqa: F403 (fixtures)
