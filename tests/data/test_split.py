"""Dividing data sets: every class alike, the same for the same seed, nothing overwritten."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from detkit.cli import run_command
from detkit.data.convert import convert
from detkit.data.formats import find_splits, open_root
from detkit.data.stratify import stratify


def test_classes_are_shared_out_alike():
    rng = np.random.default_rng(0)
    presence = rng.random((1000, 8)) < np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.01])
    shares = np.array([0.8, 0.1, 0.1])
    part = stratify(presence, shares.tolist(), seed=3)
    for number, share in enumerate(shares):
        own = presence[part == number]
        assert abs(len(own) - 1000 * share) <= 10
        assert (abs(own.sum(0) - presence.sum(0) * share) <= 2.5).all()
    assert (part == stratify(presence, shares.tolist(), seed=3)).all()
    assert (part != stratify(presence, shares.tolist(), seed=4)).any()


@given(st.integers(0, 30), st.integers(0, 4), st.integers(0, 99))
@settings(max_examples=50)
def test_every_image_has_a_part(images, classes, seed):
    presence = np.random.default_rng(seed).random((images, classes)) < 0.4
    part = stratify(presence, [0.5, 0.5], seed)
    assert part.shape == (images,)
    assert set(part.tolist()) <= {0, 1}
    if not classes:
        assert abs((part == 0).sum() - (part == 1).sum()) <= 1


def most_off(part, presence, share):
    """Return how far the number of images of a class in part 0 is from its share, for the class that is worst off."""
    return np.abs(presence[part == 0].sum(0) - share * presence.sum(0)).max(initial=0)


@given(st.integers(0, 40), st.integers(1, 5), st.floats(0.05, 0.95), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_classes_that_share_no_image_are_divided_exactly(images, classes, share, seed):
    """An image goes to the part that lacks more of the class, so that in the end each is within half an image."""
    labels = np.random.default_rng(seed).integers(0, classes + 1, images)  # the last of them for no object
    presence = labels[:, None] == np.arange(classes)
    part = stratify(presence, [share, 1 - share], seed)
    assert most_off(part, presence, share) <= 0.5 + 1e-6


@given(st.integers(1, 40), st.integers(1, 5), st.floats(0.05, 0.95), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_the_rarest_class_is_divided_exactly(images, classes, share, seed):
    """Its images are the first to be assigned, so that nothing is decided about them yet."""
    presence = np.random.default_rng(seed).random((images, classes)) < 0.4
    counts = presence.sum(0)
    assume(counts.any())
    rarest = np.where(counts > 0, counts, images + 1).argmin()
    part = stratify(presence, [share, 1 - share], seed)
    assert most_off(part, presence[:, [rarest]], share) <= 0.5 + 1e-6


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo"])
def test_split_in_each_format(small_root, tmp_path, kind, capsys):
    (small_root / "ImageSets" / "Main" / "test.txt").unlink()
    root = small_root
    if kind != "voc":
        root = tmp_path / "root"
        convert(small_root, root, kind)
        if kind == "coco":
            path = root / "annotations" / "instances_trainval.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "info": "kept"}))
        else:  # images and labels alone, in one folder
            shutil.move(root / "images" / "trainval", root / "all")
            for label in (root / "labels" / "trainval").iterdir():
                label.rename(root / "all" / label.name)
            shutil.rmtree(root / "labels")
            shutil.rmtree(root / "images")
            (root / "data.yaml").write_text("# mine\nnames: [cat, dog]")
            (root / "flags.json").unlink()
    else:
        shutil.rmtree(root / "ImageSets")
    command = ["split", str(root), "--train", ".6", "--val", "0", "--test", ".4", "--seed", "1"]
    assert run_command("dataset", command) == 0
    out = capsys.readouterr().out
    assert set(find_splits(root)) - {"trainval"} == {"train", "test"}
    train, test = open_root(root, ["train"]), open_root(root, ["test"])
    assert f"train {len(train)}, test {len(test)} images" in out
    assert set(train.ids) | set(test.ids) == {f"{i:06d}" for i in range(9)}
    assert not set(train.ids) & set(test.ids)
    assert train.image(0).shape == (40, 60, 3)
    assert len(train.truth().labels) + len(test.truth().labels) == 12
    if kind == "coco":
        assert json.loads((root / "annotations" / "instances_test.json").read_text())["info"] == "kept"
    if kind == "yolo":
        assert (root / "data.yaml").read_text().startswith("# mine\nnames: [cat, dog]\ntrain: train.txt\n")
    source = ["--from", "trainval"] if kind == "coco" else []
    assert run_command("dataset", [*command, *source]) == 2
    assert "has a split train already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--train", ".9"], "do not sum to 1"),
        (["--train", "1.2", "--val", "-.2", "--test", "0"], "do not sum to 1"),
        (["--from", "x"], "of which all images are divided"),
        (["--train", ".98", "--val", ".01", "--test", ".01"], "too few images"),
    ],
)
def test_what_split_refuses(small_root, capsys, options, text):
    shutil.rmtree(small_root / "ImageSets")
    assert run_command("dataset", ["split", str(small_root), *options]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert not (small_root / "ImageSets").exists()
