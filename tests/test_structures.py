"""Structures validate shapes and move between ragged and padded."""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit.structures import Detections, DetectionSet, Images, Predictions, Proposals, Targets, TruthSet


@dataclass(frozen=True)
class Tracked(Targets):
    """A user's own: one field more, and one that may be None."""

    track: Tensor
    weight: Tensor | None = None


def targets(counts: list[int], kind: type[Targets] = Targets, **own) -> Targets:
    """Images with so many objects; each object differs in every field, and padding is as Targets.pad leaves it."""
    valid = torch.arange(max([1, *counts])) < torch.tensor(counts).unsqueeze(1)
    number = torch.arange(1, valid.numel() + 1).view_as(valid) * valid
    boxes = number.unsqueeze(-1) + torch.tensor([0.0, 0.25, 0.5, 0.75])
    return kind(boxes * valid.unsqueeze(-1), number - 1, (number % 2 == 1) & valid, **own)


def tracked(counts: list[int], weighted: bool = True) -> Tracked:
    plain = targets(counts)
    fields = {
        "track": plain.labels * 3 + 3,
        "weight": (plain.labels + 1.5) * plain.valid if weighted else None,
        "extra": {"points": plain.boxes.view(*plain.labels.shape, 2, 2).half(), "seen": plain.ignore.clone()},
    }
    return targets(counts, Tracked, **fields)


def assert_same(found, expected):
    """Equal in every field, extra fields included, and of one type."""
    assert type(found) is type(expected)
    for name, value in vars(expected).items():
        other = getattr(found, name)
        pairs = [(other, value)]
        if isinstance(value, dict):
            assert other.keys() == value.keys()
            pairs = [(other[key], value[key]) for key in value]
        for one, two in pairs:
            if isinstance(two, Tensor):
                assert one.dtype == two.dtype
                assert torch.equal(one, two), name
            elif hasattr(two, "__dataclass_fields__"):
                assert_same(one, two)
            else:
                assert one == two


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data(), st.booleans())
@settings(deadline=None)
def test_parts_joined_again_are_the_batch(counts, data, weighted):
    whole = tracked(counts, weighted)
    cuts = sorted({0, len(counts), *data.draw(st.lists(st.integers(0, len(counts))))})
    parts = [whole.part(slice(*pair)) for pair in itertools.pairwise(cuts)]
    # each as short as it can be, so that joining has to pad
    short = [part.take(torch.arange(max(part.valid.sum(1).tolist())).repeat(len(part.labels), 1)) for part in parts]
    assert_same(Tracked.cat(parts), whole)
    joined = Tracked.cat(short)
    assert joined.labels.shape[1] == max(counts)
    if any(counts):
        assert_same(joined, whole)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 5), st.data())
@settings(deadline=None)
def test_take_gathers_objects_of_each_image(counts, number, data):
    whole = tracked(counts)
    last = whole.labels.shape[1] - 1
    index = torch.tensor([[data.draw(st.integers(-1, last)) for _ in range(number)] for _ in counts])
    index = index.view(len(counts), number).long()
    found = whole.take(index)
    padding = tracked([0])
    for row in range(len(counts)):
        for column, place in enumerate(index[row].tolist()):
            source, at = (padding, (0, 0)) if place < 0 else (whole, (row, place))
            for name in ("boxes", "labels", "ignore", "track", "weight"):
                assert torch.equal(getattr(found, name)[row, column], getattr(source, name)[at])
            for name, value in found.extra.items():
                assert torch.equal(value[row, column], source.extra[name][at])
    none = targets([0]).part(slice(0, 0)).take(torch.zeros(0, 3).long())
    assert none.labels.shape == (0, 3)
    empty = Targets(torch.zeros(2, 0, 4), torch.zeros(2, 0).long(), torch.zeros(2, 0).bool())
    assert empty.take(torch.full((2, 3), -1)).labels.tolist() == [[-1] * 3] * 2


def test_everything_in_a_batch_moves():
    """Also what lies within: proposals of images, features of predictions; None stays None."""
    sizes = torch.ones(3, 2).long()
    proposals = Proposals.pad([torch.rand(n, 4) for n in (2, 0, 1)], [torch.rand(n) for n in (2, 0, 1)])
    images = Images(torch.zeros(3, 3, 4, 5).byte(), sizes, sizes + 1, ("a", "b", "c"), proposals)
    features = {"c4": torch.rand(3, 8, 2, 2), "levels": [torch.rand(3, 1)], "stride": 16}
    predictions = Predictions(torch.rand(3, 6, 4), torch.rand(3, 6, 2), features)
    for batch in (images, predictions, tracked([1, 2, 0], weighted=False)):
        assert devices(batch) == {"cpu"}
        assert devices(batch.to("meta")) == {"meta"}
    some = images.part(torch.tensor([2, 0]))
    assert some.ids == ("c", "a")
    assert_same(some.proposals, Images.cat([images.part(slice(2, 3)), images.part(slice(0, 1))]).proposals)
    assert images.part(torch.tensor([False, True, False])).ids == ("b",)
    last = predictions.part(slice(1, 3))
    assert last.features["c4"].shape == (2, 8, 2, 2)
    assert last.features["levels"][0].shape == (2, 1)
    assert last.features["stride"] == 16
    assert last.take(torch.zeros(2, 1).long()).features["c4"].shape == (2, 8, 2, 2)


def devices(value) -> set[str]:
    """The devices of all tensors of a batch."""
    if isinstance(value, Tensor):
        return {value.device.type}
    if isinstance(value, dict):
        value = list(value.values())
    items = value if isinstance(value, list | tuple) else getattr(value, "__dict__", {}).values()
    return set().union(*map(devices, items))


def test_images_of_different_sizes_are_padded_when_joined():
    def batch(height: int, width: int, name: str) -> Images:
        size = torch.tensor([[height, width]])
        return Images(torch.full((1, 3, height, width), 7).byte(), size, size, (name,))

    joined = Images.cat([batch(2, 5, "a"), batch(4, 3, "b")])
    assert joined.pixels.shape == (2, 3, 4, 5)
    assert joined.ids == ("a", "b")
    for row, (height, width) in enumerate(joined.sizes.tolist()):
        assert joined.pixels[row].sum() == joined.pixels[row, :, :height, :width].sum() == 7 * 3 * height * width


def test_batches_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"Tracked\.weight: .* only some have it"):
        Tracked.cat([tracked([1]), tracked([1], weighted=False)])
    with pytest.raises(ValueError, match=r"Targets\.extra: .* other names"):
        Targets.cat([targets([1]), targets([1], extra={"a": torch.zeros(1, 1)})])
    one = TruthSet(
        torch.rand(1, 4), torch.zeros(1).long(), torch.zeros(1).bool(), torch.zeros(1).long(), ("a",), ("x",)
    )
    with pytest.raises(ValueError, match=r"TruthSet\.classes: .* differs"):
        TruthSet.cat([one, TruthSet(one.boxes, one.labels, one.ignore, one.image, ("a",), ("y",))])
    assert TruthSet.cat([one, one]).ids == ("a",)
    assert len(TruthSet.cat([one, one]).part(slice(1, 2)).boxes) == 1


def test_padding_is_minus_one_and_never_empty():
    one = (torch.ones(2, 4), torch.tensor([3, 0]), torch.tensor([False, True]))
    none = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    targets = Targets.pad([one, none])
    assert targets.labels.tolist() == [[3, 0], [-1, -1]]
    assert targets.valid.tolist() == [[True, True], [False, False]]
    assert Targets.pad([none]).boxes.shape == (1, 1, 4)
    assert Targets.pad([]).boxes.shape == (0, 1, 4)
    extra = Targets.pad([one, none], [{"track": torch.tensor([7, 8])}, {"track": torch.zeros(0).long()}]).extra
    assert extra["track"].tolist() == [[7, 8], [0, 0]]


@pytest.mark.parametrize("count", [None, 1, 5])
def test_proposals_are_padded_or_cut(count):
    boxes = [torch.arange(8.0).view(2, 4), torch.zeros(0, 4), torch.arange(12.0).view(3, 4)]
    scores = [torch.ones(2), torch.ones(0), torch.full((3,), 2.0)]
    proposals = Proposals.pad(boxes, scores, count)
    most = 3 if count is None else count
    assert len(proposals) == 3
    assert proposals.valid.tolist() == [[i < n for i in range(most)] for n in (2, 0, 3)]
    for i in range(3):
        assert torch.equal(proposals.boxes[i][proposals.valid[i]], boxes[i][:most])
        assert torch.equal(proposals.scores[i][proposals.valid[i]], scores[i][:most])
    assert not proposals.boxes[~proposals.valid].any()
    assert Proposals.pad(boxes).to("cpu").scores is None
    assert Proposals.pad(boxes[1:2]).boxes.shape == (1, 1, 4)
    assert Proposals.pad([]).boxes.shape == (0, 1, 4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Images(torch.zeros(2, 3, 4, 4), torch.zeros(2, 2).long(), torch.zeros(2, 2).long(), ("a", "b")),
            r"Images\.pixels: expected torch\.uint8",
        ),
        (
            lambda: Targets(torch.zeros(1, 2, 4), torch.zeros(1, 3).long(), torch.zeros(1, 3).bool()),
            r"Targets\.boxes: expected shape \(1, 3, 4\), got \(1, 2, 4\)",
        ),
        (
            lambda: Proposals(torch.zeros(1, 2, 4), torch.zeros(1, 3).bool()),
            r"Proposals\.boxes: expected shape \(1, 3, 4\), got \(1, 2, 4\)",
        ),
        (
            lambda: Proposals(torch.zeros(1, 2, 4), torch.zeros(1, 2).bool(), torch.zeros(1, 3)),
            r"Proposals\.scores: expected shape \(1, 2\)",
        ),
        (lambda: Predictions(torch.zeros(1, 5, 3, 4), torch.zeros(1, 5, 2)), r"Predictions\.boxes: expected shape"),
        (
            lambda: targets([2], extra={"track": torch.zeros(1, 3)}),
            r"Targets\.extra\['track'\]: expected shape \(1, 2, \.\.\.\), got \(1, 3\)",
        ),
        (lambda: Detections(torch.zeros(1, 5), torch.zeros(1, 5), torch.zeros(1, 5).long()), r"Detections\.boxes"),
    ],
)
def test_wrong_shapes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_structures_compare_by_every_value():
    """A user's own, and what is nested in it, too; on tensors `==` of a plain dataclass raises."""
    one, same = tracked([2, 1]), tracked([2, 1])
    assert one == same
    assert one != targets([2, 1])
    for name in ("boxes", "labels", "ignore", "track", "weight"):
        value = getattr(same, name).clone()
        value[1, 0] = not value[1, 0] if name == "ignore" else value[1, 0] + 1
        assert one != replace(same, **{name: value}), name
    assert one != replace(same, weight=None)
    assert one != replace(same, track=same.track.int())
    assert one != replace(same, extra={})
    assert one != replace(same, extra={**same.extra, "seen": ~same.extra["seen"]})
    sizes = torch.tensor([[4, 6]])
    pixels = torch.zeros(1, 3, 4, 6, dtype=torch.uint8)
    batch = [Images(pixels, sizes, sizes, ("a",), Proposals.pad([torch.zeros(n, 4)])) for n in (1, 1, 2)]
    assert batch[0] == batch[1]
    assert batch[0] != batch[2]
    assert batch[0] != replace(batch[0], ids=("b",))
    with pytest.raises(TypeError, match="unhashable type: 'Images'"):
        hash(batch[0])


def test_a_set_keeps_images_without_detections():
    labels = torch.tensor([[1, -1], [-1, -1]])
    first = Detections(torch.arange(16.0).view(2, 2, 4), torch.full((2, 2), 0.5), labels)
    joined = DetectionSet.from_batches([(first, ("a", "b")), (first, ("c", "d"))], ("x", "y"))
    assert joined.ids == ("a", "b", "c", "d")
    assert joined.image.tolist() == [0, 2]
    assert joined.labels.tolist() == [1, 1]
    marked = Detections(first.boxes, first.scores, labels, extra={"angle": torch.tensor([[5.0, 6], [7, 8]])})
    assert DetectionSet.from_batches([(marked, ("a", "b"))] * 2, ("x", "y")).extra["angle"].tolist() == [5, 5]
    assert [(len(one), one.labels.tolist(), one.extra["angle"].tolist()) for one in marked.unpad()] == [
        (1, [[1]], [[5.0]]),
        (1, [[]], [[]]),
    ]
    assert DetectionSet.from_batches([], ("x",)).boxes.shape == (0, 4)


def test_detections_are_padded_with_no_class_when_taken_and_joined():
    """Extra fields and scores are padded with 0, labels with -1: 0 is a class."""
    boxes, angle = torch.arange(1.0, 13).view(1, 3, 4), torch.tensor([[5.0, 6, 7]])
    three = Detections(boxes, torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[1, 0, 1]]), extra={"angle": angle})
    taken = three.take(torch.tensor([[2, -1]]))
    assert taken.labels.tolist() == [[1, -1]]
    assert taken.scores.tolist() == [[pytest.approx(0.7), 0]]
    assert taken.extra["angle"].tolist() == [[7, 0]]
    assert torch.equal(taken.boxes, torch.stack((boxes[:, 2], torch.zeros(1, 4)), 1))
    joined = Detections.cat([taken, three])
    assert joined.labels.tolist() == [[1, -1, -1], [1, 0, 1]]
    assert joined.valid.sum(1).tolist() == [1, 3]
    assert joined.extra["angle"].tolist() == [[7, 0, 0], [5, 6, 7]]


def test_detections_that_a_detector_struck_out_are_no_detections():
    """`refine` may do so anywhere, not only at the end."""
    boxes, scores = torch.arange(24.0).view(2, 3, 4), torch.tensor([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4]])
    labels = torch.tensor([[-1, 1, 0], [0, -1, 1]])
    first, second = Detections(boxes, scores, labels, extra={"angle": scores * 10}).unpad()
    assert first.labels.tolist() == [[1, 0]]
    assert second.labels.tolist() == [[0, 1]]
    assert torch.equal(first.boxes, boxes[:1, 1:])
    assert torch.equal(second.scores, scores[1:, [0, 2]])
    assert torch.equal(second.extra["angle"], scores[1:, [0, 2]] * 10)
