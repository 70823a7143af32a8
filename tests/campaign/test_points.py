"""A run that is killed before one of its file operations, whichever, goes on to what it would have been."""

from pathlib import Path

import pytest

from tests.campaign.children import Children
from tests.campaign.known import POINTS_FAILING
from tests.campaign.points import Points

STEP = 47  # a file that is written takes nine operations: so different ones have their turn


def chosen(operations: list[str]) -> list[int]:
    """Return some operations: the last time that each file, or one of each folder, appears or is emptied, and others
    at equal distances."""
    last = {}
    for number, (event, _, path) in enumerate(operation.partition(" ") for operation in operations):
        if event in ("opened", "rename") and not Path(path).name.startswith("."):
            last[Path(path).parts[0]] = number
    return sorted({*last.values(), *range(0, len(operations), STEP)})


@pytest.mark.xfail(strict=False, reason=POINTS_FAILING)
def test_killed_before_a_file_operation(children: Children, tmp_path: Path) -> None:
    points = Points(children, "tiny", tmp_path / "points")
    trials = map(points.kill, chosen(points.operations))
    failed = [str(trial) for trial in trials if trial.differs or trial.left]
    assert not failed, "\n".join(failed)
