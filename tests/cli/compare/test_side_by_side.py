"""The images of a comparison: which come first, and the thresholds that the page offers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detkit.comparison.side_by_side import side_by_side
from detkit.data.formats import open_root
from detkit.evaluation.errors import analyse_errors
from tests.data.roots import make_root, xml
from tests.evaluation.sets import detection_set

IDS = ("a", "b", "c")
CAT, ELSEWHERE = (0.0, 0.0, 20.0, 20.0), (30.0, 20.0, 50.0, 40.0)


def compared(tmp_path: Path, *detectors: list[tuple[str, float, tuple]], score: float = 0.5) -> dict[str, Any]:
    """Compare detectors, each of whose detections are (image, score, box), on three images of a cat."""
    annotation = xml([("cat", (1, 1, 20, 20))])
    root = make_root(tmp_path / "cats", dict.fromkeys(IDS, annotation), {"test": [*IDS]}, image_files=False)
    dataset = open_root(root, ["test"])
    truth = dataset.truth()
    rows: list[Any] = []  # what is read of `Compared`
    for found in detectors:
        detections = detection_set([(name, "cat", value, box) for name, value, box in found], IDS, ("cat",))
        errors = analyse_errors(detections, truth, "voc")
        rows.append(SimpleNamespace(detections=detections, errors=errors, score=score))
    return side_by_side(dataset, truth, rows)


def test_images_on_which_detectors_disagree_come_first(tmp_path: Path) -> None:
    """By the objects that only some find, and how far the numbers of false positives differ, at best F1."""
    one = [("a", 0.9, CAT), ("b", 0.9, CAT), ("c", 0.8, CAT), ("b", 0.7, ELSEWHERE)]
    # on a it finds the same; on b it lacks the cat and the false positive; on c its cat is below the threshold
    other = [("a", 0.9, CAT), ("c", 0.4, CAT), ("a", 0.3, ELSEWHERE), ("a", 0.2, ELSEWHERE)]
    page = compared(tmp_path, one, other)
    assert [image["id"] for image in page["images"]] == ["b", "c", "a"]
    scores = [[[row[1] for row in rows] for rows in image["detections"]] for image in page["images"]]
    expected = [[[0.9, 0.7], []], [[0.8], [0.4]], [[0.9], [0.9, 0.3, 0.2]]]
    assert scores == [[pytest.approx(rows) for rows in image] for image in expected]


def test_thresholds_leave_as_many_detections_of_each_detector(tmp_path: Path) -> None:
    """A detector that has fewer keeps all of its own."""
    many = [(IDS[k % 3], 0.95 - k / 20, CAT if k < 3 else ELSEWHERE) for k in range(14)]
    detectors = (many, many[:4], [])
    first, *levels, last = compared(tmp_path, *detectors)["levels"]
    assert first["scores"] == [0.5] * 3
    assert last["scores"] == [None] * 3
    # of 3 images: .5 is 2 detections (1.5, rounded), then 3, 6 and 12; 24 are more than any detector has
    left = [
        [sum(value >= limit - 1e-4 for _, value, _ in found) for found, limit in zip(detectors, level["scores"])]
        for level in levels
    ]
    assert left == [[2, 2, 0], [3, 3, 0], [6, 4, 0], [12, 4, 0]]
