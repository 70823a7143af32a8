"""The RPN: its proposals against torchvision's, and what its config says."""

from typing import Any

import pytest
import torch
from torchvision.models.detection.rpn import RegionProposalNetwork

from detkit.backbones import FeatureInfo
from detkit.models.map_anchors import KEPT, MapAnchors
from detkit.models.rpn import CODER, RPN, RPNConfig, RPNOutput
from detkit.ops import BACKGROUND, IGNORED, Match, box_iou, clip, grid_anchors, rpn_anchors
from detkit.structures import Images
from tests.builders import objects_of

SIZES = torch.tensor([[96, 128], [80, 100]])
IMAGES = Images(torch.zeros(2, 3, 96, 128, dtype=torch.uint8), SIZES, SIZES, ("a", "b"))


def random_output(seed: int, sides: list[tuple[int, int]]) -> RPNOutput:
    generator = torch.Generator().manual_seed(seed)
    anchors = [
        grid_anchors(*side, 8 << level, rpn_anchors(8 << level, (0.5, 1, 2), (2,))) for level, side in enumerate(sides)
    ]
    logits = [torch.randn(2, len(refs), generator=generator) for refs in anchors]
    deltas = [torch.randn(2, len(refs), 4, generator=generator) * 0.3 for refs in anchors]
    return RPNOutput(logits, deltas, anchors)


@pytest.mark.parametrize("sides", [[(12, 16)], [(12, 16), (6, 8), (3, 4)]])
@pytest.mark.parametrize(
    ("pre_nms_top_n", "post_nms_top_n", "min_size"), [(None, 1000, 0.0), (60, 30, 6.0), (5, 100, 12.0)]
)
def test_proposals_equal_torchvisions(
    sides: list[tuple[int, int]], pre_nms_top_n: int | None, post_nms_top_n: int, min_size: float
) -> None:
    output = random_output(0, sides)
    keys: dict[str, Any] = {"pre_nms_top_n": pre_nms_top_n, "post_nms_top_n": post_nms_top_n, "rpn_nms_iou": 0.5}
    rpn = RPN([FeatureInfo("c4", 4, 16)], RPNConfig(rpn_width=8, min_size=min_size, **keys))
    found = rpn.propose(output, IMAGES, training=True)
    ours, valid = found.boxes, found.valid
    assert found.scores is not None
    limits = (
        {"training": pre_nms_top_n or 1000, "testing": pre_nms_top_n or 1000},
        {"training": post_nms_top_n, "testing": post_nms_top_n},
    )
    theirs = RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, *limits, 0.5)  # pyright: ignore[reportArgumentType]
    theirs.min_size = min_size
    boxes = torch.cat([CODER.decode(delta, refs) for delta, refs in zip(output.deltas, output.anchors)], 1)
    scores, counts = torch.cat(output.logits, 1), [len(refs) for refs in output.anchors]
    assert ours.shape == (2, post_nms_top_n, 4)
    for row, size in enumerate(SIZES.tolist()):
        rows = torch.arange(scores.shape[1])
        if len(sides) == 1:  # py-faster-rcnn drops small boxes before it takes the best ones, torchvision afterwards
            clipped = clip(boxes[row : row + 1], SIZES[row : row + 1])[0]
            rows = rows[(clipped[:, 2:] - clipped[:, :2] >= min_size).all(1)]
            counts = [len(rows)]
        candidates = boxes[row : row + 1, rows], scores[row, rows].unsqueeze(1)
        (expected,), (probability,) = theirs.filter_proposals(*candidates, [tuple(size)], counts)
        torch.testing.assert_close(ours[row][valid[row]], expected)
        torch.testing.assert_close(found.scores[row][valid[row]], probability)
        assert not found.scores[row][~valid[row]].any()
        assert valid[row].int().diff().le(0).all()
        assert not ours[row][~valid[row]].any()


def test_outputs_are_in_the_order_of_cells_then_anchors() -> None:
    torch.manual_seed(0)
    rpn = RPN([FeatureInfo("c4", 4, 16)], RPNConfig(rpn_width=8, scales=[2.0]))
    x = torch.randn(2, 4, 5, 6)
    (logits,), (deltas,), (anchors,) = rpn([x])
    hidden = rpn.conv(x).relu()
    assert logits.shape == (2, 90)
    assert deltas.shape == (2, 90, 4)
    cell = rpn_anchors(16, (0.5, 1, 2), (2,))
    for row, column, anchor in ((0, 0, 0), (2, 3, 1), (4, 5, 2)):
        index = (row * 6 + column) * 3 + anchor
        torch.testing.assert_close(logits[:, index], rpn.objectness(hidden)[:, anchor, row, column])
        expected = rpn.deltas(hidden)[:, anchor * 4 : anchor * 4 + 4, row, column]
        torch.testing.assert_close(deltas[:, index], expected)
        shift = torch.tensor([column, row] * 2) * 16
        torch.testing.assert_close(anchors[index], cell[anchor] + shift)


def test_one_network_serves_all_maps_and_has_its_depth() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(1, 4, 6, 8), torch.randn(1, 4, 3, 4)]
    rpn = RPN([FeatureInfo("p3", 4, 8), FeatureInfo("p4", 4, 16)], RPNConfig(rpn_width=8, rpn_convs=2, scales=[2.0]))
    output = rpn(maps)
    assert [len(anchors) for anchors in output.anchors] == [6 * 8 * 3, 3 * 4 * 3]
    (second,) = rpn.deeper
    for x, logits in zip(maps, output.logits):
        hidden = second(rpn.conv(x).relu()).relu()
        torch.testing.assert_close(logits, rpn.objectness(hidden).permute(0, 2, 3, 1).flatten(1))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [[0, 0, IGNORED, BACKGROUND, IGNORED, IGNORED, BACKGROUND], [0, 0, *[IGNORED] * 4, BACKGROUND]]),
        (
            {"rpn_fg_iou": 0.6},
            [[0, 0, IGNORED, BACKGROUND, IGNORED, 0, BACKGROUND], [0, 0, *[IGNORED] * 3, 0, BACKGROUND]],
        ),
        ({"rpn_bg_iou": 0.2}, [[0, 0, IGNORED, BACKGROUND, *[IGNORED] * 3], [0, 0, *[IGNORED] * 5]]),
        ({"allow_border": True, "rpn_fg_iou": 0.6}, [[0, 0, 0, BACKGROUND, BACKGROUND, 0, BACKGROUND]] * 2),
    ],
)
def test_anchors_learn_what_the_config_says(keys: dict[str, Any], expected: list[list[int]]) -> None:
    """On images 100 and 64 pixels wide, both 80 high, with one object."""
    anchors = torch.tensor(
        [
            [20.0, 20, 60, 60],  # the object
            [20.0, 20, 60, 75],  # IoU .73
            [20.0, 20, 60, 81],  # IoU .66, crosses the lower border
            [70.0, 10, 95, 40],  # background, outside of the narrower image
            [-5.0, 0, 20, 20],  # background, crosses the left border
            [20.0, 20, 60, 46],  # IoU .65
            [20.0, 20, 60, 30],  # IoU .25
        ]
    )
    rpn = RPN([FeatureInfo("c4", 4, 16)], RPNConfig(rpn_width=8, **keys))
    objects = objects_of([[20.0, 20, 60, 60]], [[20.0, 20, 60, 60]])
    match = rpn.match(anchors, torch.tensor([[80, 100], [80, 64]]), objects)
    assert match.index.tolist() == expected


def test_anchors_are_sampled_by_the_rpns_keys() -> None:
    config = RPNConfig(rpn_width=8, rpn_batch_size_per_image=8, rpn_positive_fraction=0.25)
    rpn = RPN([FeatureInfo("c4", 4, 16)], config)
    index, valid = rpn.sample(Match(torch.tensor([[0] * 20 + [BACKGROUND] * 20 + [IGNORED] * 9]), torch.zeros(1, 49)))
    assert valid.tolist() == [[True] * 8]
    assert [(index < 20).sum().item(), ((index >= 20) & (index < 40)).sum().item()] == [2, 6]


@pytest.mark.parametrize("training", [False, True])
def test_proposals_are_as_many_as_the_config_says_and_as_far_apart(training: bool) -> None:
    numbers: dict[str, Any] = {
        "pre_nms_top_n": 50,
        "post_nms_top_n": 20,
        "test_pre_nms_top_n": 40,
        "test_post_nms_top_n": 10,
    }
    rpn = RPN([FeatureInfo("c4", 4, 16)], RPNConfig(rpn_width=8, rpn_nms_iou=0.3, min_size=4.0, **numbers))
    output = random_output(0, [(12, 16)])
    found = rpn.propose(output, IMAGES, training)
    rpn.config = RPNConfig(pre_nms_top_n=1000, post_nms_top_n=1000, rpn_nms_iou=0.3, min_size=4.0)
    of_all = rpn.propose(output, IMAGES, training=True)
    pre_nms_top_n, post_nms_top_n = (50, 20) if training else (40, 10)
    assert found.scores is not None
    assert of_all.scores is not None
    # NMS goes from the best to the worst, so that what stays among the best few is what comes first among all
    candidates = output.logits[0].sigmoid().topk(pre_nms_top_n).values[:, -1:]
    expected = (of_all.valid & (of_all.scores >= candidates))[:, :post_nms_top_n]
    assert found.boxes.shape == (2, post_nms_top_n, 4)
    assert torch.equal(found.valid, expected)
    assert torch.equal(found.boxes, of_all.boxes[:, :post_nms_top_n] * expected.unsqueeze(-1))
    for boxes, valid in zip(found.boxes, found.valid):
        overlap = box_iou(boxes[valid], boxes[valid]).fill_diagonal_(0)
        assert overlap.max() <= 0.3


def test_anchors_are_made_once_a_size() -> None:
    """Training can read those that detection made, and many sizes take no memory."""
    maps = [FeatureInfo("p3", 4, 8), FeatureInfo("p4", 4, 16)]
    anchors = MapAnchors("torchvision", maps, (0.5, 1), [(4,), (4,)])
    with torch.inference_mode():
        first = anchors([(6, 4), (3, 2)])
    for one, other in zip(anchors([(6, 4), (3, 2)]), first, strict=True):
        assert one is other
        weight = torch.ones(4, requires_grad=True)
        (weight * one).sum().backward()
        assert weight.grad is not None
    for rows in range(1, 4 * KEPT):
        fine, coarse = anchors([(2 * rows, 4), (rows, 2)])
        assert torch.equal(fine, grid_anchors(2 * rows, 4, (8, 8), anchors.get_buffer("cell0")))
        assert len(coarse) == rows * 2 * 2
    assert len(anchors._made) == KEPT
    anchors.double()
    assert anchors([(6, 4), (3, 2)])[0].dtype == torch.float64
