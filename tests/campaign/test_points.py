"""A run that is killed before one of its file operations, whichever, goes on to what it would have been."""

from pathlib import Path

import pytest

from tests.campaign.children import Children
from tests.campaign.known import POINTS_FAILING
from tests.campaign.points import Points

STEP = 13  # operations of a file that is written come in eights: so each of them has its turn


@pytest.mark.xfail(strict=False, reason=POINTS_FAILING)
def test_killed_before_a_file_operation(children: Children, tmp_path: Path) -> None:
    points = Points(children, "tiny", tmp_path / "points")
    chosen = {*range(0, len(points.operations), STEP)}
    chosen |= {i for i, operation in enumerate(points.operations) if operation.endswith(" log.jsonl")}
    trials = map(points.kill, sorted(chosen))
    failed = [str(trial) for trial in trials if trial.differs or trial.left]
    assert not failed, "\n".join(failed)
