"""Published MATLAB boxes and JSON, to a store and back."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from detkit.data.proposal_store import make_manifest, open_store, write_store
from detkit.data.voc import VOCDataset
from detkit.errors import UserError
from detkit.proposals.convert import read_boxes, to_store, write_json
from tests.data.roots import make_root, xml
from tests.proposals.matlab import PUBLISHED, cells, mat


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def dataset(tmp_path: Path) -> VOCDataset:
    """Return three images of 60x40."""
    root = make_root(tmp_path / "d", {name: xml([]) for name in "abc"}, {"test": list("abc")}, image_files=False)
    return VOCDataset([(root, "test")])


OURS = [[0, 0, 60, 40], [0, 0, 1, 1], [10, 5, 20, 8]]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint16, np.int32])
def test_matlab_boxes_become_continuous(tmp_path, dataset, dtype):
    boxes = [PUBLISHED.astype(dtype), np.zeros((0, 0)), PUBLISHED[:1].astype(dtype)]
    to_store(mat(tmp_path / "voc.mat", boxes, ["c", "b", "a"]), tmp_path / "a.npz", dataset)
    store = open_store(tmp_path / "a.npz")
    assert store.ids == ("c", "b", "a")
    assert store.boxes("c").tolist() == OURS
    assert store.boxes("b").shape == (0, 4)
    assert store.boxes("a").tolist() == OURS[:1]
    assert store.manifest.recipe == "converted(from=voc.mat)"


def test_matlab_boxes_without_names_are_in_the_order_of_the_split(tmp_path, dataset):
    path = mat(tmp_path / "voc.mat", [PUBLISHED[:1], PUBLISHED[1:2], PUBLISHED[2:]])
    to_store(path, tmp_path / "a.npz", dataset)
    store = open_store(tmp_path / "a.npz")
    assert store.ids == dataset.ids
    assert [store.boxes(name).tolist() for name in "abc"] == [[box] for box in OURS]
    with pytest.raises(UserError, match=r"voc\.mat: no 'images' in it; say whose boxes they are with --dataset ROOT"):
        to_store(path, tmp_path / "b.npz")
    with pytest.raises(UserError, match=r"voc\.mat: boxes of 2 images, d/test has 3"):
        to_store(mat(path, [PUBLISHED] * 2), tmp_path / "b.npz", dataset)


def test_names_of_images_lose_the_suffix_of_a_file_alone(tmp_path):
    path = mat(tmp_path / "voc.mat", [PUBLISHED[:1]] * 3, ["000001.jpg", "000002.png", "2008.000003"])
    assert read_boxes(path).ids == ["000001", "000002", "2008.000003"]


def test_refusals_of_matlab_files(tmp_path):
    path = tmp_path / "a.mat"
    for content, text in (
        ({"all_boxes": cells([PUBLISHED])}, "a.mat: no variable 'boxes' in it, only all_boxes"),
        ({"boxes": PUBLISHED}, "a.mat: 'boxes' is no cell array"),
        ({"boxes": cells([PUBLISHED[:, :3]])}, "boxes{1} has shape (3, 3), expected (N, 4): y1, x1, y2, x2"),
        ({"boxes": cells([PUBLISHED, "text"])}, "boxes{2} holds no numbers"),
        ({"boxes": cells([PUBLISHED, PUBLISHED[:, [2, 3, 0, 1]]])}, "boxes{2}: box 0 is [59, 39, 1, 1], expected left"),
        ({"boxes": cells([PUBLISHED]), "images": cells(["a", "b"])}, "'images' has 2 cells, 'boxes' has 1"),
        ({"boxes": cells([PUBLISHED]), "images": cells([7])}, "images{1} is not the name of an image"),
    ):
        savemat(path, content)
        with pytest.raises(UserError, match=re.escape(text)) as caught:
            read_boxes(path)
        assert "\n" not in str(caught.value)
    savemat(path, {"boxes": cells([PUBLISHED] * 3)})
    whole = path.read_bytes()
    for damaged in (b"", b"no matlab file", whole[:200]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.mat: (damaged, or no MATLAB file|no variable 'boxes')"):
            read_boxes(path)
    # as MATLAB begins its files of version 7.3, which are HDF5
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(116) + b"\0" * 8 + b"\x00\x02IM" + b"\0" * 400)
    with pytest.raises(UserError, match=r"a\.mat: a MATLAB 7\.3 file; save it once more"):
        read_boxes(path)


def test_plain_json(tmp_path, dataset):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": OURS, "b": [], "c": [[0.25, 1, 2, 3.5]]}))
    to_store(path, tmp_path / "a.npz", dataset)
    store = open_store(tmp_path / "a.npz")
    assert store.boxes("a").tolist() == OURS
    assert store.boxes("b").shape == (0, 4)
    assert store.boxes("c").tolist() == [[0.25, 1, 2, 3.5]]
    assert not store.scored


@pytest.mark.parametrize("scored", [False, True])
def test_json_of_a_store_holds_the_very_same_numbers(tmp_path, scored):
    draw = np.random.default_rng(0)
    low = draw.random((20, 2)) * 1000
    boxes = [np.concatenate([low, low + 1e-3 + draw.random((20, 2))], 1).astype(np.float32), np.zeros((0, 4))]
    scores = [draw.standard_normal(20).astype(np.float32), np.zeros(0)] if scored else None
    write_store(tmp_path / "a.npz", ["é", "b"], boxes, scores, manifest=make_manifest("m", {}, ["é", "b"]))
    write_json(tmp_path / "a.json", open_store(tmp_path / "a.npz"))
    to_store(tmp_path / "a.json", tmp_path / "b.npz")
    store = open_store(tmp_path / "b.npz")
    assert store.ids == ("é", "b")
    np.testing.assert_array_equal(store.boxes("é"), boxes[0])
    assert store.boxes("b").shape == (0, 4)
    assert store.scored == scored
    if scores is not None:
        np.testing.assert_array_equal(store.scores("é"), scores[0])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "a.json: not JSON"),
        ("[" * 100_000, "a.json: not JSON"),
        ("7", "a.json: expected {IMAGE: [[left, top, right, bottom], ...]}"),
        ("[[1, 2, 3, 4]]", "a.json: entry 0: expected {'image': NAME, 'boxes': [...]}"),
        ('[{"image": 5, "boxes": []}]', "a.json: entry 0: expected"),
        ('{"x": [[1, 2, 3]]}', "a.json: image x: boxes of shape (1, 3), expected (N, 4)"),
        ('{"x": [[1, 2, 3, 4], [1]]}', "a.json: image x: boxes is not a list of [left, top, right, bottom]"),
        ('{"x": [["a", 2, 3, 4]]}', "a.json: image x: boxes is not a list of"),
        ('{"x": null}', "a.json: image x: boxes is not a list of"),
        ('{"x": [[1, 2, NaN, 4]]}', "a.json: image x: box 0 is [1, 2, nan, 4]"),
        ('{"x": [[1, 2, 3, 4], [5, 5, 5, 9]]}', "a.json: image x: box 1 is [5, 5, 5, 9], expected left < right"),
        ('[{"image": "x", "boxes": [[1, 2, 3, 4]], "scores": []}]', "image x: 1 boxes and scores of shape (0,)"),
        ('[{"image": "x", "boxes": [], "scores": [true]}]', "image x: scores is not a list of numbers"),
        ('[{"image": "x", "boxes": [], "scores": []}, {"image": "y", "boxes": []}]', "1 of 2 images have scores"),
        ('[{"image": "x", "boxes": []}, {"image": "x", "boxes": []}]', "a.json: image x is there twice"),
    ],
)
def test_refusals_of_json(tmp_path, content, text):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(text)) as caught:
        to_store(tmp_path / "a.json", tmp_path / "a.npz")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.npz").exists()


def test_a_data_set_checks_names_and_places(tmp_path, dataset):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"c": [], "a": []}))
    with pytest.raises(UserError, match=r"a\.json: no boxes of image b of d/test \(1 of 3 are missing\)"):
        to_store(path, tmp_path / "a.npz", dataset)
    for box in ([10, 30, 20, 55], [-5, 0, 3, 3], [0, 0, 62, 3]):
        path.write_text(json.dumps({"a": [], "b": [[0, 0, 1, 1], box], "c": []}))
        with pytest.raises(UserError, match=r"image b: the box .* reaches beyond the image of 60x40; are x and y exch"):
            to_store(path, tmp_path / "a.npz", dataset)
    path.write_text(json.dumps({"a": [[-1, 0, 61, 40.5]], "b": [], "c": [], "other": [[0, 0, 900, 900]]}))
    to_store(path, tmp_path / "a.npz", dataset)
    assert "other" in open_store(tmp_path / "a.npz").ids


def test_other_files(tmp_path):
    with pytest.raises(UserError, match=r"a\.pkl: boxes are read from files that end with \.mat or \.json"):
        read_boxes(tmp_path / "a.pkl")
    for name in ("a.mat", "a.json"):
        with pytest.raises(UserError, match=f"no file .*{name}"):
            read_boxes(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="the reader's process is a fork, with a limit, on Linux alone")
def test_a_matlab_file_that_ends_its_reader_is_one_line(tmp_path, monkeypatch):
    path = mat(tmp_path / "a.mat", [PUBLISHED])
    with monkeypatch.context() as patch:
        patch.setattr("scipy.io.loadmat", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(UserError, match=r"a\.mat: damaged: scipy's reader of MATLAB files ended at it"):
            read_boxes(path)
    assert len(read_boxes(path).boxes) == 1
    savemat(path, {"boxes": cells([np.zeros((10_000_000, 4))])}, do_compression=True)
    assert path.stat().st_size < 1e6
    monkeypatch.setenv("DETKIT_MAX_UNPACKED_GB", "0.1")
    with pytest.raises(
        UserError, match=r"a\.mat: damaged, or takes more than 0\.1 GB; .* raise DETKIT_MAX_UNPACKED_GB"
    ):
        read_boxes(path)
