import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import SSDMatcher

from detkit import ops
from detkit.ops.matching import BACKGROUND, IGNORED
from tests.builders import SSD300
from tests.ops import reference
from tests.ops.reference import random_boxes


def check(boxes: Tensor, valid: Tensor, ignore: Tensor, anchors: Tensor, threshold: float = 0.5) -> ops.Match:
    match = ops.match_ssd(boxes, valid, ignore, anchors, threshold)
    overlap = ops.box_iou(boxes, anchors).double().cpu()  # the ties of float32 are ties of the loop
    for i in range(len(boxes)):
        wanted, _ = reference.match_ssd(overlap[i], valid[i], ignore[i], threshold)
        assert match.index[i].tolist() == wanted
    return match


@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 30), st.sampled_from([None, 1.0, 20.0]))
@settings(max_examples=60)
def test_equals_the_greedy_loop(seed: int, count: int, anchors: int, grid: float | None) -> None:
    torch.manual_seed(seed)
    boxes, refs = random_boxes(3, count, grid=grid), random_boxes(anchors, grid=grid)
    check(boxes, torch.rand(3, count) < 0.8, torch.rand(3, count) < 0.3, refs)


def test_equals_the_greedy_loop_on_devices(device: torch.device) -> None:
    boxes, refs = random_boxes(4, 9, grid=10).to(device), random_boxes(60, grid=10).to(device)
    check(boxes, torch.rand(4, 9, device=device) < 0.8, torch.rand(4, 9, device=device) < 0.3, refs)


def test_crowd_of_equal_objects_takes_the_next_best_anchors() -> None:
    """The longest conflict: every object wants the same anchors in the same order."""
    boxes = torch.tensor([0.0, 0, 10, 10]).expand(1, 12, 4).contiguous()
    anchors = torch.stack([torch.tensor([0.0, 0, 10, 10 + k]) for k in range(15)])
    yes = torch.ones(1, 12, dtype=torch.bool)
    match = check(boxes, yes, ~yes, anchors)
    # object n gets anchor n; the rest of the overlapping ones go to the first object
    assert match.index[0].tolist() == [*range(12), *[0 if k <= 10 else -1 for k in range(12, 15)]]


def test_chain_of_refusals_ends_in_the_greedy_pairs() -> None:
    """Object n's first choice is anchor n, and object n - 1 wants it more once it has lost its own."""
    objects = [[0.0, 0, 10, 10]] + [[10.0 * n - 6 + 0.1 * n, 0, 10.0 * n + 4, 10] for n in range(1, 8)]
    anchors = [[0.0, 0, 9, 10]] + [[10.0 * n - 8, 0, 10.0 * n + 2, 10] for n in range(1, 8)]
    yes = torch.ones(1, 8, dtype=torch.bool)
    check(torch.tensor([objects]), yes, ~yes, torch.tensor(anchors), 0.99)


def test_tie_with_an_object_that_asked_before() -> None:
    """Object 0 loses its first choice, and then ties with object 1 at what that holds since the first round."""
    boxes = torch.tensor([[[0.0, 0, 10, 8], [0, 8, 10, 16], [0, 0, 10, 10]]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 4, 10, 12]])
    yes = torch.ones(1, 3, dtype=torch.bool)
    assert check(boxes, yes, ~yes, anchors, 0.9).index.tolist() == [[2, 0]]


def test_two_objects_do_not_lose_one_prior_as_in_the_ports() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 8]]])
    anchors = torch.tensor([[0.0, 0, 10, 9.5], [50, 50, 60, 60], [0, 0, 3, 3]])
    yes = torch.ones(1, 2, dtype=torch.bool)
    assert check(boxes, yes, ~yes, anchors).index.tolist() == [[0, -1, 1]]
    theirs = SSDMatcher(0.5)(ops.box_iou(boxes[0], anchors))
    assert sorted(set(theirs.tolist())) == [-1, 1]  # object 0 is lost


def test_equals_torchvision_where_nothing_conflicts() -> None:
    anchors = ops.default_boxes(**SSD300)
    boxes = torch.tensor([[[10.0, 10, 60, 80], [200, 150, 290, 290], [100, 20, 130, 40]]])
    match = ops.match_ssd(boxes, torch.ones(1, 3, dtype=torch.bool), None, anchors)
    assert torch.equal(match.index[0], SSDMatcher(0.5)(ops.box_iou(boxes[0], anchors)))
    assert torch.equal(match.iou[0], ops.box_iou(boxes[0], anchors).amax(0))


def test_ignored_objects_hide_priors_and_are_never_matched() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 11], [90, 90, 95, 95]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 0, 30, 10]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    match = ops.match_ssd(boxes, valid, torch.tensor([[False, True]]), anchors)
    assert match.index.tolist() == [[0, IGNORED, 0, BACKGROUND]]
    assert match.iou[0, 1] == 0
    both = ops.match_ssd(boxes[:, [0, 0]], valid, torch.tensor([[False, True]]), anchors)
    assert both.index.tolist() == [[0, BACKGROUND, 0, BACKGROUND]]  # a prior of both answers for the one trained on
    only = ops.match_ssd(boxes, valid, valid, anchors)
    assert only.index.tolist() == [[IGNORED, IGNORED, IGNORED, BACKGROUND]]
    assert ops.match_ssd(boxes, valid, None, anchors).index.tolist() == [[0, 1, 0, BACKGROUND]]


def test_objects_that_overlap_nothing_get_nothing() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 20]])
    boxes = torch.tensor([[[50.0, 50, 60, 60], [5, 5, 5, 5], [0, 0, 3, 3]]])
    match = ops.match_ssd(boxes, torch.ones(1, 3, dtype=torch.bool), None, anchors)
    assert match.index.tolist() == [[2, BACKGROUND]]


@pytest.mark.parametrize(("batch", "count", "anchors"), [(2, 0, 5), (0, 3, 5), (2, 3, 0), (0, 0, 0)])
def test_empty(batch: int, count: int, anchors: int, device: torch.device) -> None:
    valid = torch.ones(batch, count, dtype=torch.bool, device=device)
    match = ops.match_ssd(random_boxes(batch, count).to(device), valid, ~valid, random_boxes(anchors).to(device))
    assert match.index.shape == match.iou.shape == (batch, anchors)
    assert match.index.dtype == torch.int64
    assert (match.index == BACKGROUND).all()


def test_padding_alone_is_background() -> None:
    valid = torch.zeros(2, 3, dtype=torch.bool)
    match = ops.match_ssd(random_boxes(2, 3), valid, valid, random_boxes(9))
    assert (match.index == BACKGROUND).all()
    assert (match.iou == 0).all()


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_batch_equals_singles_and_padding_changes_nothing(seed: int) -> None:
    torch.manual_seed(seed)
    boxes, anchors = random_boxes(4, 6, grid=5), random_boxes(50, grid=5)
    valid, ignore = torch.rand(4, 6) < 0.7, torch.rand(4, 6) < 0.2
    whole = ops.match_ssd(boxes, valid, ignore, anchors)
    padded = ops.match_ssd(
        torch.cat((boxes, random_boxes(4, 3)), 1),
        torch.cat((valid, torch.zeros(4, 3, dtype=torch.bool)), 1),
        torch.cat((ignore, torch.rand(4, 3) < 0.5), 1),
        anchors,
    )
    assert torch.equal(padded.index, whole.index)
    assert torch.equal(padded.iou, whole.iou)
    for i in range(4):
        single = ops.match_ssd(boxes[i : i + 1], valid[i : i + 1], ignore[i : i + 1], anchors)
        assert torch.equal(single.index[0], whole.index[i])
        assert torch.equal(single.iou[0], whole.iou[i])


def test_every_object_of_a_full_scene_has_a_prior() -> None:
    anchors = ops.default_boxes(**SSD300)
    boxes = random_boxes(4, 20, size=250, side=80)
    match = ops.match_ssd(boxes, torch.ones(4, 20, dtype=torch.bool), None, anchors)
    overlap = ops.box_iou(boxes, anchors)
    for i in range(4):
        pairs = greedy_pairs(overlap[i])
        assert {n: a for n, a in pairs if match.index[i, a] == n} == dict(pairs)
        assert len(pairs) == 20


def greedy_pairs(overlap: Tensor) -> list[tuple[int, int]]:
    """The definition, with one argmax over what is left of (N, A) a step."""
    left, pairs = overlap.clone(), []
    for _ in range(len(left)):
        best = int(left.argmax())
        n, a = divmod(best, left.shape[1])
        if left[n, a] <= 0:
            break
        pairs.append((n, a))
        left[n], left[:, a] = -1, -1
    return pairs
