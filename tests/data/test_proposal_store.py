"""The store: what is written is read, images are matched and checked, and making one survives interruptions."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detkit.data.proposal_store import (
    StoredProposals,
    check_store,
    hash_ids,
    make_command,
    make_manifest,
    match_ids,
    open_store,
    write_store,
)
from detkit.data.voc import VOCDataset
from detkit.errors import UserError
from detkit.proposals import make as module
from detkit.proposals.make import make_store
from tests.data.roots import make_root, xml
from tests.proposals.making import corners

HERE = Path(__file__).resolve()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def random_boxes(count: int, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    low = draw.random((count, 2)) * (30, 19)  # in images of 60 x 40
    return np.concatenate([low, low + 0.5 + draw.random((count, 2)) * 20], 1).astype(np.float32)


def write(path: Path, ids: list[str], counts: list[int], scored: bool = False, **parameters) -> list[np.ndarray]:
    boxes = [random_boxes(count, seed) for seed, count in enumerate(counts)]
    scores = [np.linspace(1, 0, count, dtype=np.float32) for count in counts] if scored else None
    write_store(path, ids, boxes, scores, manifest=make_manifest("made_up", parameters, ids))
    return boxes


@given(st.lists(st.integers(0, 9), max_size=6), st.booleans())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path, counts, scored):
    ids = [f"é{'x' * i}/{i}" for i in range(len(counts))]
    boxes = write(tmp_path / "a.npz", ids, counts, scored, mode="fast")
    store = open_store(tmp_path / "a.npz")
    assert store.ids == tuple(ids)
    assert store.counts.tolist() == counts
    assert store.scored == scored
    assert (store.manifest.method, store.manifest.parameters) == ("made_up", {"mode": "fast"})
    assert (store.manifest.images, store.manifest.images_hash) == (len(ids), hash_ids(ids))
    for row, (name, own) in enumerate(zip(ids, boxes)):
        np.testing.assert_array_equal(store.boxes(name), own)
        np.testing.assert_array_equal(store.boxes(row, 3), own[:3])
        scores = store.scores(name)
        assert (scores is None) != scored
        assert scores is None or scores.tolist() == np.linspace(1, 0, len(own), dtype=np.float32).tolist()
        assert store.boxes(name).dtype == np.float32


def test_boxes_are_mapped_and_copies_are_handed_out(tmp_path):
    (boxes,) = write(tmp_path / "a.npz", ["x"], [5])
    store = open_store(tmp_path / "a.npz")
    assert isinstance(store.flat_boxes, np.memmap)
    store.boxes("x")[:] = 0
    np.testing.assert_array_equal(store.boxes("x"), boxes)
    with np.load(tmp_path / "a.npz") as plain:  # any reader of .npz can have it
        np.testing.assert_array_equal(plain["boxes"], boxes)
        assert json.loads(str(plain["manifest"]))["format"] == "detkit proposals 1"
        np.savez_compressed(tmp_path / "b.npz", **plain)
    np.testing.assert_array_equal(open_store(tmp_path / "b.npz").boxes("x"), boxes)


def test_refusals_of_writing(tmp_path):
    manifest = make_manifest("m", {}, ["x"])
    for bad, text in (
        ([[1, 1, 1, 2]], "image x: box 0 is [1, 1, 1, 2], expected left < right and top < bottom"),
        ([[0, 0, 2, 2], [0, 0, np.nan, 2]], "image x: box 1 is [0, 0, nan, 2]"),
        ([[0, 0, np.inf, 2]], "image x: box 0 is"),
        ([[1, 2, 3]], "image x: boxes of shape (1, 3)"),
    ):
        with pytest.raises(UserError, match=re.escape(text)):
            write_store(tmp_path / "a.npz", ["x"], [np.array(bad)], manifest=manifest)
    good = np.array([[0, 0, 2, 2]])
    with pytest.raises(UserError, match="a score is not finite"):
        write_store(tmp_path / "a.npz", ["x"], [good], [np.array([np.nan])], manifest=manifest)
    with pytest.raises(UserError, match=r"a\.pkl: a proposal store's name ends with \.npz"):
        write_store(tmp_path / "a.pkl", ["x"], [good], manifest=manifest)
    for ids, boxes in ((["x", "x"], [good, good]), (["x"], [])):
        with pytest.raises(ValueError, match="lists of boxes for"):
            write_store(tmp_path / "a.npz", ids, boxes, manifest=manifest)
    assert list(tmp_path.glob("*.npz")) == []


def test_refusals_of_reading(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(UserError, match=r"no proposals .*a\.npz; make them with: detkit proposals make CONFIG --out"):
        open_store(path)
    write(path, ["x", "y"], [3, 4])
    whole = path.read_bytes()
    for damaged in (b"", b"no zip", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged, or not a proposal store"):
            open_store(path)
    path.write_bytes(whole)
    with np.load(path) as plain:
        parts = dict(plain)
    manifest = json.loads(str(parts["manifest"]))
    for change, text in (
        (
            {"manifest": np.array(json.dumps(manifest | {"format": "detkit proposals 9"}))},
            "format is 'detkit proposals 9'",
        ),
        ({"manifest": np.array("[]")}, "format is None"),
        ({"manifest": np.array("{")}, "damaged, or not a proposal store"),
        ({"manifest": np.array(json.dumps(manifest | {"more": 1}))}, "its manifest is not one of"),
        ({"ids": np.array(["y", "x"])}, "its parts do not belong together"),
        ({"ids": np.array(["x"])}, "its parts do not belong together"),
        ({"first": np.array([0, 9, 7])}, "its parts do not belong together"),
        ({"first": np.array([0, 3, 8])}, "its parts do not belong together"),
        ({"scores": np.zeros(3, np.float32)}, "its parts do not belong together"),
        ({"boxes": np.zeros((7, 4))}, "boxes is float64"),
        ({"boxes": np.array([None] * 7)}, "damaged"),
        (
            {"boxes": np.full((7, 4), np.nan, np.float32)},
            "image x: box 0 is [nan, nan, nan, nan], expected left < right",
        ),
        ({"boxes": parts["boxes"] * np.float32([1, 1, np.inf, 1])}, "image x: box 0 is ["),
        ({"boxes": parts["boxes"][:, [2, 1, 0, 3]]}, "image x: box 0 is ["),
        (
            {"boxes": np.concatenate([parts["boxes"][:-1], np.zeros((1, 4), np.float32)])},
            "image y: box 3 is [0, 0, 0, 0]",
        ),
        ({"scores": np.full(7, np.inf, np.float32)}, "a score is not finite"),
        ({"scores": np.zeros(7)}, "scores is float64"),
        ({"first": np.array([0.0, 3, 7])}, "first is float64"),
        ({"ids": np.array([b"x", b"y"])}, "ids is |S1"),
        ({"ids": np.array(["x", "x"]), "manifest": manifest_of(manifest, ["x", "x"])}, "an image is there twice"),
        ({"manifest": np.array(json.dumps(manifest | {"images": 3}))}, "its parts do not belong together"),
        ({"manifest": np.array(json.dumps(manifest | {"parameters": 3}))}, "its manifest is not one of"),
    ):
        np.savez(path, **(parts | change))
        with pytest.raises(UserError, match=re.escape(text)) as caught:
            open_store(path)
        assert "\n" not in str(caught.value)
    np.savez(path, **{key: value for key, value in parts.items() if key != "ids"})
    with pytest.raises(UserError, match="damaged, or not a proposal store"):
        open_store(path)


def manifest_of(manifest: dict, ids: list[str]) -> np.ndarray:
    return np.array(json.dumps(manifest | {"images_hash": hash_ids(ids)}))


@pytest.mark.parametrize("packed", [False, True])
def test_a_changed_byte_of_a_store_is_found_wherever_it_is(packed, tmp_path):
    path = tmp_path / "a.npz"
    write(path, ["x", "y"], [30, 40], scored=True)
    if packed:
        with np.load(path) as plain:
            np.savez_compressed(path, **plain)
    whole, store = path.read_bytes(), open_store(path)
    boxes, scores, draw, refusals = store.flat_boxes.copy(), store.flat_scores, np.random.default_rng(0), []
    scores = np.array(scores)
    places = [(at, draw.integers(8)) for at in draw.choice(len(whole), 150)]
    # every bit of the last two members' entries in the zip's directory: a wrong length there hides what comes after it
    last = whole.rfind(b"PK\1\2", 0, whole.rfind(b"PK\1\2"))
    places += [(at, bit) for at in range(last, len(whole)) for bit in range(8)]
    for at, bit in places:
        path.unlink()  # the maps of the store above are of the earlier file
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << int(bit)]) + whole[at + 1 :])
        try:
            changed = open_store(path)
        except UserError as error:
            refusals.append(str(error))
        else:  # in a date or the like
            assert changed.manifest == store.manifest
            assert changed.ids == store.ids
            np.testing.assert_array_equal(changed.flat_boxes, boxes)
            np.testing.assert_array_equal(changed.flat_scores, scores)
    assert len(refusals) > 50
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in refusals)


def test_arrays_that_run_by_columns_are_read_as_they_are(tmp_path):
    path = tmp_path / "a.npz"
    boxes = np.concatenate(write(path, ["x", "y"], [3, 4]))
    with np.load(path) as plain:
        np.savez(path, **{**plain, "boxes": np.asfortranarray(boxes)})
    np.testing.assert_array_equal(open_store(path).flat_boxes, boxes)


def test_a_store_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    manifest = make_manifest("m", {}, ["x"])
    write_store(path, ["x"], [np.tile(np.float32([0, 0, 2, 2]), (300_000, 1))], manifest=manifest)
    with np.load(path) as plain:
        np.savez_compressed(tmp_path / "b.npz", **plain)
    monkeypatch.setenv("DETKIT_MAX_UNPACKED_GB", "0.004")
    assert open_store(path).counts.tolist() == [300_000]
    with pytest.raises(
        UserError, match=r"b\.npz: unpacks to 0\.00\d+ GB, the limit is 0\.004; .*DETKIT_MAX_UNPACKED_GB=1"
    ):
        open_store(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("wanted", "ids", "places"),
    [
        (["a", "b", "c"], ["b", "a"], [1, 0, -1]),
        (["A/a", "B/b"], ["a", "b"], [0, 1]),
        (["a", "b"], ["A/a", "B/b"], [0, 1]),
        (["A/a"], ["B/a"], [-1]),  # another folder's image
        (["A/a", "B/a"], ["a"], [-1, -1]),  # whose is it?
        (["a"], ["A/a", "B/a"], [-1]),
        (["a", "A/a"], ["a", "A/a"], [0, 1]),
        ([], ["a"], []),
        (["a"], [], [-1]),
    ],
)
def test_names_with_and_without_their_folder(wanted, ids, places):
    assert match_ids(wanted, ids).tolist() == places


def roots(tmp_path: Path) -> tuple[Path, Path]:
    one = make_root(tmp_path / "one", {name: xml([]) for name in "abc"}, {"train": list("ab"), "test": ["c"]})
    two = make_root(tmp_path / "two", {name: xml([]) for name in "de"}, {"train": list("de")})
    return one, two


def test_stores_are_searched_in_order(tmp_path):
    one, two = roots(tmp_path)
    dataset = VOCDataset([(one, "train"), (two, "train")])
    first = write(tmp_path / "first.npz", ["b", "a"], [4, 3], scored=True)
    second = write(tmp_path / "second.npz", ["e", "two/d", "b"], [2, 5, 6])
    found = StoredProposals([tmp_path / "first.npz", tmp_path / "second.npz"], dataset, count=3)
    for i, own in enumerate((first[1], first[0], second[1], second[0])):
        np.testing.assert_array_equal(found.boxes(i), own[:3])
    assert found.scores(0) is None  # not all have scores
    single = StoredProposals([open_store(tmp_path / "first.npz")], VOCDataset([(one, "train")]))
    assert single.scores(1).tolist() == np.linspace(1, 0, 4, dtype=np.float32).tolist()
    check_store(open_store(tmp_path / "first.npz"), VOCDataset([(one, "train")]))


def test_missing_images_are_named_with_the_command_that_makes_them(tmp_path):
    one, two = roots(tmp_path)
    write(tmp_path / "first.npz", ["a"], [3])
    store = open_store(tmp_path / "first.npz")
    with pytest.raises(UserError) as caught:
        check_store(store, VOCDataset([(one, "train"), (two, "train")]))
    assert str(caught.value) == (
        f"{tmp_path / 'first.npz'}: no proposals of image one/b of one/train+two/train (3 of 4 are missing); make them "
        f"with: detkit proposals make --root {tmp_path} --split one/train --split two/train"
    )
    assert make_command(VOCDataset([(one, "test")])) == f"detkit proposals make --root {one} --split test"


def test_boxes_outside_of_the_image_are_named(tmp_path):
    one, _ = roots(tmp_path)
    dataset = VOCDataset([(one, "train")])
    good, edge = np.array([[0, 0, 60, 40.0]]), np.array([[-1, -1, 61, 41.0]])
    manifest = make_manifest("m", {}, ["a", "b"])
    for bad, text in (
        ([0, 0, 40, 60], "0, 0, 40, 60"),
        ([0, 0, 61.5, 40], "0, 0, 61.5, 40"),
        ([0, -2, 9, 9], "0, -2, 9, 9"),
    ):
        write_store(tmp_path / "a.npz", ["a", "b"], [good, np.array([*edge, bad])], manifest=manifest)
        with pytest.raises(UserError) as caught:
            check_store(open_store(tmp_path / "a.npz"), dataset)
        assert str(caught.value) == (
            f"{tmp_path / 'a.npz'}: image b: the box left, top, right, bottom = {text} reaches beyond the image "
            "of 60x40; are x and y exchanged?"
        )
    (one / "JPEGImages" / "b.jpg").unlink()  # the annotation alone says it
    with pytest.raises(UserError, match=r"reaches beyond the image of 60x40"):
        check_store(open_store(tmp_path / "a.npz"), dataset)


@pytest.mark.parametrize("stated", [(40, 60), None])
def test_the_image_knows_its_size_better_than_its_annotation(tmp_path, stated):
    root = make_root(tmp_path / "one", {"a": xml([], size=stated)}, {"train": ["a"]})
    write_store(tmp_path / "a.npz", ["a"], [np.array([[0, 0, 60, 40.0]])], manifest=make_manifest("m", {}, ["a"]))
    check_store(open_store(tmp_path / "a.npz"), VOCDataset([(root, "train")]))


# --- making


def stub(monkeypatch: pytest.MonkeyPatch, function) -> None:
    """Put a quick function in the place of selective search, also in the processes that are forked later."""
    monkeypatch.setattr(module, "find_method", lambda name, parameters: lambda image: function(image, **parameters))


def image_files(tmp_path: Path, count: int = 9) -> VOCDataset:
    names = [f"{i:03d}" for i in range(count)]
    root = make_root(tmp_path / "images", {name: xml([]) for name in names}, {"all": names, "few": names[:3]})
    return VOCDataset([(root, "all")])


@pytest.mark.parametrize("workers", [1, 3])
def test_making(tmp_path, monkeypatch, workers):
    stub(monkeypatch, corners)
    monkeypatch.setattr(module, "PART", 2)
    dataset, seen = image_files(tmp_path), []
    out = tmp_path / "out" / "a.npz"
    store = make_store(
        out, dataset, "corners", {"mode": "fast"}, workers=workers, progress=lambda *counts: seen.append(counts)
    )
    assert store.ids == dataset.ids
    for i, name in enumerate(dataset.ids):
        np.testing.assert_array_equal(store.boxes(name), corners(dataset.image(i)))
    assert store.manifest.recipe == "corners(mode=fast)"
    assert seen == [(count, 9) for count in range(1, 10)]
    assert os.listdir(out.parent) == ["a.npz"]
    before = out.stat()
    assert make_store(out, dataset, "corners", {"mode": "fast"}, workers=workers).ids == dataset.ids
    assert out.stat().st_mtime_ns == before.st_mtime_ns  # nothing to do
    with pytest.raises(UserError, match=r"a\.npz holds corners\(mode=fast\), not corners\(mode=quality\); remove"):
        make_store(out, dataset, "corners", {"mode": "quality"}, workers=workers)
    few = VOCDataset([(tmp_path / "images", "few")])
    with pytest.raises(UserError, match=r"a\.npz holds 9 other images, not these 3; remove .* another --out"):
        make_store(out, few, "corners", {"mode": "fast"}, workers=workers)


def test_a_broken_image_is_named_and_what_is_done_stays(tmp_path, monkeypatch):
    stub(monkeypatch, corners)
    dataset = image_files(tmp_path)
    random_image = tmp_path / "images" / "JPEGImages" / "007.jpg"
    content = random_image.read_bytes()
    random_image.write_bytes(b"no image")
    out = tmp_path / "a.npz"
    with pytest.raises(UserError, match=r"007\.jpg: corrupt or truncated image"):
        make_store(out, dataset, "corners", {"mode": "fast"}, workers=1)
    assert not out.exists()
    (parts,) = tmp_path.glob("a.npz.parts-*")
    done = [name for path in parts.glob("*.npz") for name in open_store(path).ids]
    assert done == [f"{i:03d}" for i in range(7)]

    with pytest.raises(UserError, match=r"00000\.npz holds corners\(mode=fast\), not corners\(mode=quality\); remove "):
        make_store(out, dataset, "corners", {"mode": "quality"}, workers=1)
    # images of the parts are not looked at again
    random_image.write_bytes(content)
    for name in done:
        (random_image.parent / f"{name}.jpg").unlink()
    store = make_store(out, dataset, "corners", {"mode": "fast"}, workers=2)
    assert store.ids == dataset.ids
    assert not parts.exists()


def test_parts_of_other_images_are_left_alone(tmp_path, monkeypatch):
    stub(monkeypatch, corners)
    dataset, few = image_files(tmp_path), VOCDataset([(tmp_path / "images", "few")])
    last = tmp_path / "images" / "JPEGImages" / "008.jpg"
    last.unlink()
    with pytest.raises(UserError, match=r"no image .*008\.jpg"):
        make_store(tmp_path / "a.npz", dataset, "corners", {}, workers=1)
    make_store(tmp_path / "a.npz", few, "corners", {}, workers=1)
    assert len(list(tmp_path.glob("a.npz.parts-*/*.npz"))) == 1


def test_a_killed_process_ends_in_one_line(tmp_path, monkeypatch):
    stub(monkeypatch, lambda image: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="was killed, perhaps for want of memory; start the same command again"):
        make_store(tmp_path / "a.npz", image_files(tmp_path), "corners", {}, workers=2)


def test_an_unknown_method_or_file_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match=r"a\.pkl: a proposal store's name ends with \.npz"):
        make_store(tmp_path / "a.pkl", image_files(tmp_path), "corners", {}, workers=1)
    with pytest.raises(UserError, match=r"no method 'selectiv_search' .*did you mean 'selective_search'"):
        make_store(tmp_path / "a.npz", VOCDataset([(tmp_path / "images", "all")]), "selectiv_search", {}, workers=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_what_is_done_and_leaves_no_processes(tmp_path, number):
    image_files(tmp_path, 60)
    out = tmp_path / "a.npz"
    command = [sys.executable, "-m", "tests.proposals.making", tmp_path / "images", out, str(int(number))]
    # its output ends when the last process that could write to it has ended
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=HERE.parents[2],
    ) as process:
        try:
            said, noise = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert said == "5\n"
    assert noise.strip().endswith("KeyboardInterrupt: 5 of 60 images are done; the same command goes on from there")
    assert noise.count("Traceback") == 1
    assert not out.exists()
    (part,) = tmp_path.glob("a.npz.parts-*/*.npz")
    assert len(open_store(part)) == 5
