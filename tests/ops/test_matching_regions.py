"""The RPN's and the region heads' matching against loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit import ops
from detkit.ops.matching import BACKGROUND, IGNORED
from tests.ops import reference
from tests.ops.reference import random_boxes

GRIDS = st.sampled_from([None, 1.0, 20.0])


@given(st.integers(0, 10**6), st.integers(0, 7), st.integers(1, 40), GRIDS)
@settings(max_examples=60)
def test_rpn_equals_the_loop(seed: int, count: int, anchors: int, grid: float | None) -> None:
    torch.manual_seed(seed)
    boxes, refs = random_boxes(3, count, grid=grid), random_boxes(anchors, grid=grid)
    valid, ignore, inside = torch.rand(3, count) < 0.8, torch.rand(3, count) < 0.3, torch.rand(3, anchors) < 0.7
    match = ops.match_rpn(boxes, valid, ignore, refs, inside, 0.6, 0.3)
    overlap = ops.box_iou(boxes, refs)
    for i in range(3):
        args = (valid[i], ignore[i], inside[i])
        assert match.index[i].tolist() == reference.match_rpn(overlap[i].double(), *args, *map(float32, (0.6, 0.3)))


@given(
    st.integers(0, 10**6),
    st.integers(0, 7),
    st.integers(0, 40),
    GRIDS,
    st.sampled_from([0.0, 0.1, 0.25]),
    st.sampled_from([(0.5, 0.5), (0.75, 0.5)]),
)
@settings(max_examples=60)
def test_regions_equal_the_loop(
    seed: int, count: int, regions: int, grid: float | None, low: float, bounds: tuple[float, float]
) -> None:
    torch.manual_seed(seed)
    boxes, rois = random_boxes(3, count, grid=grid), random_boxes(3, regions, grid=grid)
    valid, ignore, real = torch.rand(3, count) < 0.8, torch.rand(3, count) < 0.3, torch.rand(3, regions) < 0.7
    foreground, high = bounds
    match = ops.match_regions(boxes, valid, ignore, rois, real, foreground, (low, high))
    overlap = ops.box_iou(boxes, rois)
    for i in range(3):
        args = (valid[i], ignore[i], real[i])
        wanted = reference.match_regions(overlap[i].double(), *args, foreground, (float32(low), high))
        assert match.index[i].tolist() == wanted


def float32(value: float) -> float:
    return torch.tensor(value).item()


def test_the_best_anchor_is_positive_however_small_the_overlap() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [40, 40, 41, 41], [90, 90, 95, 95]]])
    anchors = torch.tensor([[0.0, 0, 10, 12], [30, 30, 50, 50], [30, 30, 50, 50], [60, 60, 70, 70]])
    yes = torch.ones(1, 3, dtype=torch.bool)
    match = ops.match_rpn(boxes, yes, ~yes, anchors, torch.ones(1, 4, dtype=torch.bool))
    # both that tie; the last object overlaps nothing and forces nothing
    assert match.index.tolist() == [[0, 1, 1, BACKGROUND]]


def test_an_overlap_exactly_on_a_bound() -> None:
    """`negative` is no background any more, `positive` is an object; `low` is background, `high` isn't."""
    boxes = torch.tensor([[[0.0, 0, 8, 8]]])
    yes = torch.ones(1, 1, dtype=torch.bool)
    # the first is the best; then IoUs of .5, .25 and .125 exactly, and a little less than each
    sides = torch.tensor([8.0, 4, 2, 1, 3.99, 1.99, 0.99])
    anchors = torch.stack((sides * 0, sides * 0, sides * 0 + 8, sides), 1)
    every = torch.ones(1, len(sides), dtype=torch.bool)
    match = ops.match_rpn(boxes, yes, ~yes, anchors, every, 0.5, 0.25)
    assert match.iou[0, :4].tolist() == [1, 0.5, 0.25, 0.125]
    wanted = [0, 0, IGNORED, BACKGROUND, IGNORED, BACKGROUND, BACKGROUND]
    assert match.index[0].tolist() == wanted
    match = ops.match_regions(boxes, yes, ~yes, anchors[None], every, 0.5, (0.125, 0.25))
    assert match.index[0].tolist() == [0, 0, IGNORED, BACKGROUND, IGNORED, BACKGROUND, IGNORED]


def test_between_background_and_foreground_a_region_is_neither() -> None:
    boxes = torch.tensor([[[0.0, 0, 8, 8]]])
    yes = torch.ones(1, 1, dtype=torch.bool)
    sides = torch.tensor([6.0, 5, 4, 3])  # IoU .75, .625, .5, .375
    regions = torch.stack((sides * 0, sides * 0, sides * 0 + 8, sides), 1)[None]
    match = ops.match_regions(boxes, yes, ~yes, regions, torch.ones(1, 4, dtype=torch.bool), 0.75, (0.0, 0.5))
    assert match.index[0].tolist() == [0, IGNORED, IGNORED, BACKGROUND]


def test_without_objects() -> None:
    boxes, none = torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool)
    inside = torch.tensor([[True, False], [True, True]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [5, 5, 15, 15]])
    wanted = [[BACKGROUND, IGNORED], [BACKGROUND, BACKGROUND]]
    assert ops.match_rpn(boxes, none, none, anchors, inside).index.tolist() == wanted
    assert ops.match_regions(boxes, none, none, anchors.expand(2, 2, 4), inside).index.tolist() == wanted


def test_what_belongs_to_ignored_objects_alone_is_left_out() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [50, 50, 70, 70]]])
    yes = torch.ones(1, 2, dtype=torch.bool)
    ignore = torch.tensor([[True, False]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 70, 70], [80, 0, 90, 10]])
    every = torch.ones(1, 3, dtype=torch.bool)
    wanted = [[IGNORED, 1, BACKGROUND]]
    assert ops.match_rpn(boxes, yes, ignore, anchors, every).index.tolist() == wanted
    assert ops.match_regions(boxes, yes, ignore, anchors[None], every).index.tolist() == wanted
