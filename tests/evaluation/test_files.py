"""comp4 files and detections.json: what was written is read, and what is wrong is named."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.errors import UserError
from detkit.evaluation import read_comp4, read_detections, voc_ap, write_comp4, write_detections
from detkit.structures import DetectionSet
from tests.evaluation.sets import detection_set, truth_set

BOX = (0.0, 0.0, 10.0, 10.0)
ROWS = [("b", "cat", 0.1, (1.5, 2.25, 30, 40)), ("a", "dog", 0.9, BOX), ("b", "cat", 0.1, (0, 0, 1, 1))]
COLUMNS = ("boxes", "scores", "labels", "image")


def assert_same(one: DetectionSet, other: DetectionSet) -> None:
    assert (one.ids, one.classes) == (other.ids, other.classes)
    for name in COLUMNS:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0)


def test_comp4_is_one_based_and_inclusive(tmp_path: Path):
    write_comp4(tmp_path, detection_set(ROWS), "val")
    assert (tmp_path / "comp4_det_val_cat.txt").read_text() == (
        "b 0.100000001 2.500000 3.250000 30.000000 40.000000\nb 0.100000001 1.000000 1.000000 1.000000 1.000000\n"
    )
    assert (tmp_path / "comp4_det_val_dog.txt").read_text() == "a 0.899999976 1.000000 1.000000 10.000000 10.000000\n"
    found = read_comp4(tmp_path, "val")
    assert found.classes == ("cat", "dog")
    assert found.ids == ("b", "a")
    assert found.boxes.tolist() == [[1.5, 2.25, 30, 40], [0, 0, 1, 1], [0, 0, 10, 10]]
    assert found.labels.tolist() == [0, 0, 1]
    assert found.image.tolist() == [0, 0, 1]
    assert read_comp4(tmp_path, "val", classes=["dog"], ids=["z", "a"]).image.tolist() == [1]


def test_comp4_of_the_kit(tmp_path: Path):
    """Blank lines, Windows ends, several blanks, exponents and whole numbers are all accepted."""
    (tmp_path / "comp4_det_test_cat.txt").write_bytes(b"000005  1e-3 1 1 10 10\r\n\n000007 -2 1.0 1 1\t5\r\n")
    found = read_comp4(tmp_path)
    assert found.ids == ("000005", "000007")
    assert found.scores.tolist() == [1e-3, -2]


def test_comp4_without_detections(tmp_path: Path):
    paths = write_comp4(tmp_path, detection_set([]))
    assert [path.read_text() for path in paths] == ["", ""]
    found = read_comp4(tmp_path, ids=("a", "b"))
    assert found.classes == ("cat", "dog")
    assert found.boxes.shape == (0, 4)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_what_was_written_scores_the_same(seed: int, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("files")
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(40, 2, generator=random) * 20
    boxes = torch.cat((corner, corner + 1 + torch.rand(40, 2, generator=random) * 20), 1)
    labels = torch.randint(0, 2, (40,), generator=random)
    image = torch.randint(0, 2, (40,), generator=random)
    # neighbouring float32 values, which six decimals would confuse
    scores = 0.5 + torch.randint(0, 9, (40,), generator=random) * 2**-24
    found = DetectionSet(boxes, scores, labels, image, ("a", "b"), ("cat", "dog"))
    truth = truth_set([("ab"[i % 2], ("cat", "dog")[i % 3 % 2], tuple(boxes[i].tolist())) for i in range(12)])
    write_comp4(folder, found)
    write_detections(folder / "detections.json", found)
    read = read_comp4(folder, ids=found.ids)
    ours = read_detections(folder / "detections.json")
    assert_same(ours, found)
    for metric in ("voc07", "voc"):
        expected = voc_ap(found, truth, metric=metric).ap.tolist()
        assert voc_ap(read, truth, metric=metric).ap.tolist() == expected
        assert voc_ap(ours, truth, metric=metric).ap.tolist() == expected


@pytest.mark.parametrize(
    "line",
    [
        "000005 0.5 1 1 10",
        "000005 0.5 1 1 10 10 7",
        "000005 0.5 1 one 10 10",
        "000005 nan 1 1 9 9",
        "x 1 1 inf 9 9",
        "a",
    ],
)
def test_comp4_names_file_and_line(line: str, tmp_path: Path):
    (tmp_path / "comp4_det_test_cat.txt").write_text(f"000005 0.5 1 1 10 10\n\n{line}\n")
    with pytest.raises(UserError, match=r"comp4_det_test_cat.txt, line 3: .* is not `id score xmin ymin xmax ymax`"):
        read_comp4(tmp_path)


def test_comp4_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UserError, match=r"no comp4_det_test_<class>.txt in it"):
        read_comp4(tmp_path)
    path = tmp_path / "comp4_det_test_cat.txt"
    path.write_text("a 0.5 1 1 10 10\nzebra 0.5 1 1 10 10\n")
    with pytest.raises(UserError, match=r"cat.txt, line 2: image 'zebra' is not in the data set's split"):
        read_comp4(tmp_path, ids=("a",))
    with pytest.raises(UserError, match=r"no file .*comp4_det_test_dog.txt; a class without"):
        read_comp4(tmp_path, classes=("cat", "dog"))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_comp4(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        read_comp4(tmp_path)


def test_names_that_comp4_cannot_hold(tmp_path: Path):
    with pytest.raises(UserError, match="class 'a/b'"):
        write_comp4(tmp_path, detection_set([], classes=("a/b",)))
    with pytest.raises(UserError, match="image 'my cat'"):
        write_comp4(tmp_path, detection_set([], ids=("my cat",)))
    with pytest.raises(UserError, match=r"image 'caf\\udce9'"):
        write_comp4(tmp_path, detection_set([], ids=("caf\udce9",)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [ROWS, []])
def test_detections_json_keeps_every_bit(rows, dtype: torch.dtype, tmp_path: Path):
    found = detection_set(rows, ("a", 'image "ü" \\ 1', "b", "c\udce9\n\x1b"), ("cat", "dog"), dtype)
    path = tmp_path / "out" / "detections.json"
    write_detections(path, found)
    assert_same(read_detections(path), found)
    assert json.loads(path.read_text())["classes"] == ["cat", "dog"]
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_written_that_could_not_be_read(tmp_path: Path):
    found = detection_set([("a", "cat", math.nan, BOX)])
    for write in (write_detections, write_comp4):
        with pytest.raises(UserError, match="not finite"):
            write(tmp_path / "detections", found)
    assert list(tmp_path.iterdir()) == []


def changed(**changes: object) -> str:
    content = {
        "format": "detkit detections 1",
        "precision": "float32",
        "classes": ["cat"],
        "images": ["a", "b"],
        "columns": ["image", "class", "score", "left", "top", "right", "bottom"],
        "detections": [[0, 0, 0.5, 1, 1, 2, 2], [1, 0, 0.5, 1, 1, 2, 2]],
    }
    content.update(changes)
    return json.dumps({key: value for key, value in content.items() if value is not None})


GOOD = [0, 0, 0.5, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "nested too deep"),
        ("[]", "no format, expected 'detkit detections 1'"),
        ('{"images": []}', "no format"),
        (changed(format="coco"), "format is 'coco'"),
        *((changed(**{key: None}), f"no '{key}' in it") for key in ("precision", "classes", "images", "detections")),
        (changed(precision="half"), "precision is 'half'"),
        (changed(precision=["float32"]), "precision is"),
        (changed(columns=["score"]), "columns are"),
        (changed(classes="cat"), "'classes' is not a list of names"),
        (changed(images=["a", 2]), "'images' is not a list of names"),
        (changed(images=["a", "a"]), "'images' names 'a' twice"),
        (changed(detections={}), "'detections' is not a list"),
        (changed(detections=[GOOD, GOOD[:6]]), "detection 1 is not 7 finite numbers"),
        (changed(detections=[GOOD[:6], GOOD[:6]]), "detection 0 is not 7 finite numbers"),
        (changed(detections=[GOOD, 5]), "detection 1 is not 7"),
        (changed(detections=[GOOD, "text"]), "detection 1 is not 7"),
        (changed(detections=[GOOD, [0, 0, "x", 1, 1, 2, 2]]), "detection 1 is not 7"),
        (changed(detections=[GOOD, [0, 0, math.nan, 1, 1, 2, 2]]), "detection 1 is not 7"),
        (changed(detections=[GOOD, [0, 0, 10**400, 1, 1, 2, 2]]), "detection 1 is not 7"),
        (changed(detections=[[GOOD]]), "detection 0 is not 7"),
        (
            changed(detections=[GOOD, [2, 0, 0.5, 1, 1, 2, 2]]),
            "detection 1: image 2 is not an index into the list of 2",
        ),
        (changed(detections=[[0, -1, 0.5, 1, 1, 2, 2]]), "detection 0: class -1 is not"),
        (changed(detections=[[0, 0.5, 0.5, 1, 1, 2, 2]]), "detection 0: class 0.5 is not"),
    ],
)
def test_detections_json_says_what_is_wrong(text: str, line: str, tmp_path: Path):
    path = tmp_path / "detections.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_detections(path)
    assert line in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_detections_json_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match="no file"):
        read_detections(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not a text file"):
        read_detections(tmp_path / "x.json")
