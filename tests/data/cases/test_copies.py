"""Byte-identical images: `split` keeps them together, `check` says where they stand in two splits."""

import re
import shutil

import pytest

from detkit.data.formats import open_root
from tests.data.cases.builders import BOX, FOLDER, FORMATS, make
from tests.data.cases.seen import lines_with

GROUPS = [("00", "01"), ("02", "10", "19"), ("07", "08"), ("15", "16")]


def with_copies(kind, root):
    """Twenty images, of which nine are of four groups of copies."""
    files = {f"{i:02d}.jpg": [(("cat", "dog")[i % 2], BOX)] for i in range(20)}
    make(kind, root, files)
    folder = root / FOLDER[kind]
    for first, *others in GROUPS:
        for other in others:
            shutil.copy(folder / f"{first}.jpg", folder / f"{other}.jpg")
    return root


def members(root, names=("train", "val", "test")):
    """Stems of the images of each split."""
    opened = [open_root(root, [name]) for name in names]
    return [{data.path(i).stem for i in range(len(data))} for data in opened]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", FORMATS)
def test_split_keeps_copies_together_and_says_so(tmp_path, paths, kind, seed):
    root = with_copies(kind, tmp_path / "root")
    status, said = paths.run("split", root, "--train=.5", "--val=.25", "--test=.25", f"--seed={seed}")
    assert status == 0, said
    parts = members(root)
    assert sorted(name for part in parts for name in part) == [f"{i:02d}" for i in range(20)]
    for group in GROUPS:
        assert any(part >= {*group} for part in parts), f"{group} is divided: {parts}"
    assert abs(len(parts[0]) - 10) <= 2
    assert all(abs(len(part) - 5) <= 2 for part in parts[1:])
    assert re.search(r"(?m)^.*\b9\b.*(identical|copies).*$|^.*(identical|copies).*\b9\b.*$", said), said
    splits = [option for name in ("train", "val", "test") for option in ("--split", name)]
    _, said = paths.run("check", "--root", root, *splits)
    assert not lines_with(said, ("train", "test", ".jpg"))


@pytest.mark.parametrize("kind", FORMATS)
def test_split_is_the_same_for_the_same_seed(tmp_path, paths, kind):
    parts = []
    for name in ("one", "two"):
        root = with_copies(kind, tmp_path / name)
        assert paths.run("split", root, "--train=.5", "--val=.25", "--test=.25", "--seed=3")[0] == 0
        parts.append(members(root))
    assert parts[0] == parts[1]


@pytest.mark.parametrize("kind", FORMATS)
def test_split_of_nothing_but_copies_is_said(tmp_path, paths, kind):
    root = make(kind, tmp_path / "root", {f"{i}.jpg": [("cat", BOX)] for i in range(6)})
    for i in range(1, 6):
        shutil.copy(root / FOLDER[kind] / "0.jpg", root / FOLDER[kind] / f"{i}.jpg")
    before = {*root.rglob("*.txt"), *root.rglob("*.json")}
    status, said = paths.run("split", root, "--train=.5", "--val=0", "--test=.5")
    assert status == 2, said
    assert re.search("identical|copies|copy", said), said
    assert {*root.rglob("*.txt"), *root.rglob("*.json")} == before


@pytest.mark.parametrize("kind", FORMATS)
def test_check_says_which_copies_stand_in_two_splits(tmp_path, paths, kind):
    """With both files and both splits; copies within a split are said as before."""
    source = make(kind, tmp_path / "source", {f"{name}.jpg": [("cat", BOX)] for name in "abcd"})
    root = source
    status, said = paths.run("split", root, "--train=.5", "--val=0", "--test=.5")
    assert status == 0, said
    train, test = (sorted(part) for part in members(root, ("train", "test")))
    folder = root / FOLDER[kind]
    shutil.copy(folder / f"{train[0]}.jpg", folder / f"{test[0]}.jpg")
    status, said = paths.run("check", "--root", root, "--split", "train", "--split", "test")
    assert status == 1
    assert lines_with(said, (f"{train[0]}.jpg", f"{test[0]}.jpg", "train", "test")), said
    shutil.copy(folder / f"{train[0]}.jpg", folder / f"{train[1]}.jpg")
    status, said = paths.run("check", "--root", root, "--split", "train")
    assert status == 1
    assert lines_with(said, (f"{train[0]}.jpg", f"{train[1]}.jpg")), said


@pytest.mark.parametrize("kind", FORMATS)
def test_images_without_copies_are_divided_without_a_word(tmp_path, paths, kind):
    root = make(kind, tmp_path / "root", {f"{name}.jpg": [("cat", BOX)] for name in "abcd"})
    status, said = paths.run("split", root, "--train=.5", "--val=0", "--test=.5")
    assert status == 0
    assert not re.search("identical|copies|copy", said)
