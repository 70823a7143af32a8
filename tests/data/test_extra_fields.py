"""Fields of a user's own: from a format through the loader to training, and to scoring."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.config import DataConfig, TrainConfig
from detkit.data import loader
from detkit.data.annotations import AnnotatedObject, Annotations
from detkit.data.check import check_root
from detkit.data.custom import AnnotatedImage, Object, register_format
from detkit.data.formats import DATASETS
from detkit.data.index import Index, cached_index, make_index
from detkit.data.opening import open_dataset
from detkit.data.transforms import build_train
from detkit.errors import UserError
from detkit.structures import InputSpec, Targets
from tests.data.roots import random_image

IMAGES = 4
AUGMENT = ["Expand", {"IoUCrop": {"scale": [0.3, 0.6]}}, "HorizontalFlip"]
CONTENT: list[AnnotatedImage] = []  # what the format reads next


@pytest.fixture(scope="module", autouse=True)
def root(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("extra")
    for i in range(IMAGES):
        random_image(folder / f"{i}.png", seed=i)
    register_format("extra")(lambda root: {"train": CONTENT})
    yield folder
    del DATASETS["extra"]


def extra_of(label: int, has_track: bool) -> dict:
    """The fields of an object, which its class tells: a number that some objects lack, an array, and a flag."""
    own = {"points": np.full((2, 3), label + 0.1), "seen": label % 2 == 0}
    return own | {"track": 100 + label} if has_track else own


def fill(objects: list[tuple[int, bool]]) -> list[bool]:
    """Set what the format reads: objects (image, whether they have a track), each of a class of its own."""
    images: list[list[Object]] = [[] for _ in range(IMAGES)]
    for label, (image, has_track) in enumerate(objects):
        left, top = 3 * label, 2 * label
        flags = {"difficult": label % 5 < 2, "crowd": label % 3 == 0}
        box = (left, top, left + 20, top + 15)
        images[image].append(Object(f"{label:02d}", box, **flags, extra=extra_of(label, has_track)))
    CONTENT[:] = [AnnotatedImage(f"{i}.png", own, (60, 40)) for i, own in enumerate(images)]
    return [has_track for _, has_track in objects]


def check(labels: torch.Tensor, extra: dict[str, torch.Tensor], has_track: list[bool]) -> None:
    """Every object has the fields of its class; padding has zeros."""
    assert extra.keys() == ({"points", "seen", "track"} if any(has_track) else {"points", "seen"})
    for label, *values in zip(labels.tolist(), *extra.values()):
        own = dict(zip(extra, values))
        expected = extra_of(label, has_track[label]) if label >= 0 else {"points": np.zeros((2, 3)), "seen": False}
        assert torch.equal(own["points"], torch.from_numpy(expected["points"]).float())
        assert bool(own["seen"]) == expected["seen"]
        if any(has_track):
            assert own["track"].item() == expected.get("track", 0)


@given(
    st.lists(st.tuples(st.integers(0, IMAGES - 1), st.booleans()), min_size=1, max_size=8),
    st.integers(0, 100),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([[], [{"Mosaic": {"p": 1}}, "MixUp"]]),
)
@settings(deadline=None, max_examples=40)
def test_a_field_survives_from_the_format_to_training_and_scoring(root, objects, seed, parts, combined):
    has_track = fill(objects)
    config = DataConfig(root=str(root), format="extra", train=["train"], augment=[*combined, *AUGMENT])
    dataset = open_dataset(config, "train")
    truth = dataset.truth().to("cpu")
    assert len(truth.labels) == len(objects)
    check(truth.labels, truth.extra, has_track)
    recipe = TrainConfig(iterations=4, batch=4, workers=0, seed=seed)
    for images, targets in loader.train_loader(dataset, InputSpec((32, 48)), config, recipe, start=0, stop=3):
        size = len(images) // parts
        pieces = [targets.part(slice(first, first + size)) for first in range(0, len(images), size)]
        again = Targets.cat(pieces).to("cpu")
        check(again.labels.flatten(), {name: value.flatten(0, 1) for name, value in again.extra.items()}, has_track)
        assert torch.equal(again.labels, targets.labels)


@pytest.mark.parametrize("difficult", [True, False])
def test_augmentation_drops_fields_with_their_objects(root, difficult):
    """Each object that remains has its own label, flag and fields; and the crops do lose objects."""
    has_track = fill([(i % IMAGES, True) for i in range(12)])
    config = DataConfig(root=str(root), format="extra", train=["train"], augment=AUGMENT, difficult=difficult)
    dataset, recipe = open_dataset(config, "train"), TrainConfig(iterations=9, batch=4, workers=0, seed=3)
    transform, counts, position = build_train(AUGMENT, InputSpec((32, 48))), [], 0
    for images, targets in loader.train_loader(dataset, InputSpec((32, 48)), config, recipe, start=0, stop=8):
        check(targets.labels[targets.valid], {k: v[targets.valid] for k, v in targets.extra.items()}, has_track)
        counts += targets.valid.sum(1).tolist()
        for row, name in enumerate(images.ids):
            i = dataset.ids.index(name)
            known = dataset.record(i).annotations
            _, boxes, kept = transform(dataset.image(i), known.boxes, (3, position), len(known))
            position += 1
            assert targets.labels[row][targets.valid[row]].tolist() == known.labels[kept].tolist()
            assert targets.boxes[row][targets.valid[row]].tolist() == boxes.tolist()
            ignored = known.crowd if difficult else known.crowd | known.difficult
            assert targets.ignore[row][targets.valid[row]].tolist() == ignored[kept].tolist()
    assert {1, 2, 3} <= set(counts)
    assert targets.extra["points"].dtype == torch.float32


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("left", "is 'left', neither a number nor an array of numbers"),
        ([1, 2], r"has shape \(2,\), but \(\) elsewhere"),
        (None, "is None, neither"),
    ],
)
def test_a_field_of_another_kind_is_named(root, value, reason):
    first, second = (Object("cat", (0, 0, 9, 9 + i), extra={"track": own}) for i, own in enumerate((1, value)))
    CONTENT[:] = [AnnotatedImage("0.png", [first, second], (60, 40))]
    config = DataConfig(root=str(root), format="extra", train=["train"])
    with pytest.raises(UserError, match=rf"0\.png: object 2: cat: extra field 'track' {reason}"):
        open_dataset(config, "train")
    (problem,) = check_root(root, format_name="extra").problems
    assert problem.object == 2


def test_sources_need_not_have_the_same_fields():
    with_track = Annotations.from_objects([AnnotatedObject(0, (0, 0, 1, 1), number=1, extra={"track": 5})])
    without = Annotations.from_objects([AnnotatedObject(label, (0, 0, 1, 1), number=label + 1) for label in (0, 1)])
    joined = Annotations.concatenate([without, with_track])
    assert joined.extra["track"].tolist() == [0, 0, 5]
    assert joined.labels.tolist() == [0, 1, 0]
    pair = Annotations.from_objects([AnnotatedObject(0, (0, 0, 1, 1), number=1, extra={"track": [5, 6]})])
    with pytest.raises(UserError, match="extra field 'track' in different shapes"):
        Annotations.concatenate([with_track, pair])


def test_fields_are_kept_in_the_file_of_an_index(tmp_path: Path):
    thing = AnnotatedObject("cat", (0, 0, 1, 2), number=7, extra={"track": 5})
    index = make_index([AnnotatedImage("a", [thing])], ["cat"])
    objects = index.objects
    cached_index(tmp_path, "", "digest", Index, lambda: index)
    stored = cached_index(tmp_path, "", "digest", Index, lambda: pytest.fail("the file is not read"))
    assert stored.objects.arrays().keys() == objects.arrays().keys()
    for name, value in objects.arrays().items():
        np.testing.assert_array_equal(stored.objects.arrays()[name], value)
