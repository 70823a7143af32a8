"""Structures validate shapes and move between ragged and padded."""

import pytest
import torch

from detkit.structures import Detections, DetectionSet, Images, Predictions, Proposals, Targets


def test_padding_is_minus_one_and_never_empty():
    one = (torch.ones(2, 4), torch.tensor([3, 0]), torch.tensor([False, True]))
    none = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    targets = Targets.pad([one, none])
    assert targets.labels.tolist() == [[3, 0], [-1, -1]]
    assert targets.valid.tolist() == [[True, True], [False, False]]
    assert Targets.pad([none]).boxes.shape == (1, 1, 4)
    assert Targets.pad([]).boxes.shape == (0, 1, 4)


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
        (lambda: Detections(torch.zeros(1, 5), torch.zeros(1, 5), torch.zeros(1, 5).long()), r"Detections\.boxes"),
    ],
)
def test_wrong_shapes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_set_keeps_images_without_detections():
    labels = torch.tensor([[1, -1], [-1, -1]])
    first = Detections(torch.arange(16.0).view(2, 2, 4), torch.full((2, 2), 0.5), labels)
    joined = DetectionSet.from_batches([(first, ("a", "b")), (first, ("c", "d"))], ("x", "y"))
    assert joined.ids == ("a", "b", "c", "d")
    assert joined.image.tolist() == [0, 2]
    assert joined.labels.tolist() == [1, 1]
    assert DetectionSet.from_batches([], ("x",)).boxes.shape == (0, 4)
