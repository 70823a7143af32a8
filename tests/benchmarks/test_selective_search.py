"""The comparison with OpenCV's selective search, here with a stand-in for opencv-contrib."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detkit.benchmarks import search_recall
from detkit.benchmarks.contrib import ContribSearch
from detkit.cli import run_command
from detkit.errors import UserError
from detkit.evaluation.recall import proposal_recall
from detkit.structures import TruthSet
from tests.builders import few_regions
from tests.data.roots import make_root, xml

# boxes say what the stand-in was given: the mode's number after the image's last pixel, B, G, R; a search takes 0.25 s
# of a clock that nothing else moves
STAND_IN = """
import runpy, sys, time, types
import cv2
import numpy as np

now = 0.0
time.process_time = lambda: now

class Search:
    def setBaseImage(self, image): self.image = image
    def switchToSingleStrategy(self): self.mode = 1
    def switchToSelectiveSearchFast(self): self.mode = 2
    def switchToSelectiveSearchQuality(self): self.mode = 3
    def process(self):
        global now
        now += 0.25
        height, width, _ = self.image.shape
        if self.mode == 1:
            return ()
        return np.array([[0, 0, width, height], [*self.image[-1, -1], self.mode], [3, 4, 19, 40]], np.int32)

segmentation = types.SimpleNamespace(createSelectiveSearchSegmentation=Search)
cv2.ximgproc = types.SimpleNamespace(segmentation=segmentation)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture
def contrib(tmp_path: Path) -> Path:
    """A Python that seems to have opencv-contrib."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path / "stand_in.py"}" "$2"\n')
    python.chmod(0o755)
    return python


def test_both_processes_have_the_same_pixels(contrib: Path) -> None:
    search = ContribSearch(contrib)
    image = np.zeros((20, 30, 3), np.uint8)
    image[-1, -1] = (50, 60, 70)
    seconds, boxes = search.search(image, "fast")
    assert seconds == 0.25
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[0, 0, 30, 20], [70, 60, 120, 62], [3, 4, 22, 44]]
    image[-1, -1] = (1, 2, 3)
    flipped = np.zeros((20, 30, 3), np.uint8)
    flipped[:, 0] = (1, 2, 3)
    assert search.search(flipped[:, ::-1], "quality")[1][1].tolist() == [3, 2, 4, 5]
    assert search.search(image, "single")[1].shape == (0, 4)
    search.close()


@pytest.mark.parametrize("words", ["Permission denied", "No such file", "no attribute 'ximgproc'"])
def test_says_what_is_wrong_with_the_python(tmp_path: Path, words: str) -> None:
    python = Path(sys.executable) if "ximgproc" in words else tmp_path / "python"
    if "denied" in words:
        python.write_text("no program")
    with pytest.raises(UserError, match=words) as error:
        ContribSearch(python)
    assert "\n" not in str(error.value)


def random_boxes(count: int, largest: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    corner = random.random((count, 2)) * 100
    return np.concatenate([corner, corner + 5 + random.random((count, 2)) * largest], 1).astype(np.float32)


def test_rows() -> None:
    ours = [random_boxes(count, 60, count) for count in (700, 150, 0)]
    theirs = [random_boxes(count, 40, count) for count in (450, 250, 9)]
    objects = torch.from_numpy(np.concatenate([random_boxes(40, 60, 5), random_boxes(5, 20, 6)]))
    labels, image = torch.arange(45) % 2, torch.arange(45) % 3
    truth = TruthSet(objects, labels, torch.zeros(45, dtype=torch.bool), image, ("a", "b", "c"), ("x", "y"))
    large = [boxes[((boxes[:, 2:] - boxes[:, :2]) >= 20).all(1)] for boxes in theirs]
    assert 150 < len(large[0]) < 400
    found = search_recall.rows(ours, theirs, truth)
    names = [search_recall.DETKIT, search_recall.CONTRIB, search_recall.LARGE]
    numbers = ["100", "300", "500", "1000", "2000", "all"]
    pairs = [(names[0], "equal"), (names[1], "equal"), (names[0], "equal"), (names[2], "equal")]
    assert [(row.method, row.best) for row in found] == [(name, best) for name in names for best in numbers] + pairs

    def check(row: search_recall.Row, boxes: list[np.ndarray]) -> None:
        wanted = proposal_recall(boxes, truth, (None,), (0.5, 0.7))
        figures = [row.boxes, *row.recall, row.mabo]
        assert figures == pytest.approx([float(wanted.boxes[0]), *wanted.recall[0].tolist(), float(wanted.mabo[0])])

    for start, boxes in zip((0, 6, 12), (ours, theirs, large)):
        check(found[start], [own[:100] for own in boxes])
        check(found[start + 1], [own[:300] for own in boxes])
        check(found[start + 5], boxes)
    check(found[18], [ours[0][:450], ours[1], ours[2]])
    check(found[19], [theirs[0], theirs[1][:150], theirs[2][:0]])
    fewer = min(150, len(large[1]))
    check(found[20], [ours[0][: len(large[0])], ours[1][:fewer], ours[2]])
    check(found[21], [large[0], large[1][:fewer], large[2][:0]])


def test_command(
    contrib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    annotations = {name: xml([("cat", (3, 2, 30, 30))]) for name in "abc"}
    root = make_root(tmp_path / "cats", annotations, {"train": list(annotations)})
    monkeypatch.setattr("detkit.runtime.race.race", lambda benchmark, setting: [])
    monkeypatch.setattr(
        search_recall, "selective_search", lambda image, mode, min_size=20: few_regions(image, mode)[:20]
    )
    words = ["proposals", "--contrib", str(contrib), "--root", str(root), "--split", "train", "--json"]
    assert run_command("benchmark", words) == 0
    found = json.loads(capsys.readouterr().out)["proposals"]
    assert {name: len(seconds) for name, seconds in found["seconds"].items()} == {"detkit": 3, "opencv-contrib": 3}
    assert found["seconds"]["opencv-contrib"] == [0.25] * 3
    assert [row["boxes"] for row in found["rows"] if row["best"] == "all"][:2] == [20, 3]
    assert [row["boxes"] for row in found["rows"] if row["best"] == "equal"][:2] == [3, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ops", "--contrib", "python"], "--contrib goes with the benchmark proposals"),
        (["ops", "--mode", "fast"], "--mode goes with the benchmark proposals"),
        (["proposals", "--root", "images"], "--root images is to compare with opencv-contrib: give --contrib PYTHON"),
        (["proposals", "--split", "test"], "--split test goes with --root DIR"),
        (["proposals", "--mode", "fats"], "unknown mode of selective search 'fats'; did you mean 'fast'"),
    ],
)
def test_options_that_do_not_fit(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("benchmark", words) == 2
    assert message in capsys.readouterr().err
