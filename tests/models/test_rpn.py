"""The RPN's proposals against torchvision's."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork

from detkit.models.rpn import CODER, RPNHead, propose
from detkit.ops import grid_anchors, rpn_anchors

SIZES = torch.tensor([[96, 128], [80, 100]])


def raw(seed: int, sides: list[tuple[int, int]]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    anchors = [
        grid_anchors(*side, 8 << level, rpn_anchors(8 << level, (0.5, 1, 2), (2,))) for level, side in enumerate(sides)
    ]
    logits = [torch.randn(2, len(refs), generator=generator) for refs in anchors]
    deltas = [torch.randn(2, len(refs), 4, generator=generator) * 0.3 for refs in anchors]
    return logits, deltas, anchors


@pytest.mark.parametrize("sides", [[(12, 16)], [(12, 16), (6, 8), (3, 4)]])
@pytest.mark.parametrize(
    ("pre_nms_top_n", "post_nms_top_n", "min_size"), [(1000, 1000, 0.0), (60, 30, 6.0), (5, 100, 12.0)]
)
def test_proposals_equal_torchvisions(
    sides: list[tuple[int, int]], pre_nms_top_n: int, post_nms_top_n: int, min_size: float
) -> None:
    logits, deltas, anchors = raw(0, sides)
    found = propose(
        logits,
        deltas,
        anchors,
        SIZES,
        torch.full((2,), min_size),
        pre_nms_top_n=pre_nms_top_n,
        post_nms_top_n=post_nms_top_n,
        nms_iou=0.5,
    )
    ours, there = found.boxes, found.valid
    assert found.scores is not None
    limits = (
        {"training": pre_nms_top_n, "testing": pre_nms_top_n},
        {"training": post_nms_top_n, "testing": post_nms_top_n},
    )
    theirs = RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, *limits, 0.5)  # pyright: ignore[reportArgumentType]
    theirs.min_size = min_size
    boxes = torch.cat([CODER.decode(delta, refs) for delta, refs in zip(deltas, anchors)], 1)
    scores = torch.cat(logits, 1).flatten().unsqueeze(1)
    sizes = [(int(h), int(w)) for h, w in SIZES.tolist()]
    wanted, probability = theirs.filter_proposals(boxes, scores, sizes, [len(refs) for refs in anchors])
    assert ours.shape == (2, post_nms_top_n, 4)
    for row in range(2):
        torch.testing.assert_close(ours[row][there[row]], wanted[row])
        torch.testing.assert_close(found.scores[row][there[row]], probability[row])
        assert not found.scores[row][~there[row]].any()
        assert there[row].int().diff().le(0).all()
        assert not ours[row][~there[row]].any()


def test_head_lists_cells_then_anchors() -> None:
    torch.manual_seed(0)
    head = RPNHead(4, 8, 3)
    x = torch.randn(2, 4, 5, 6)
    (logits,), (deltas,) = head([x])
    hidden = head.conv(x).relu()
    assert logits.shape == (2, 90)
    assert deltas.shape == (2, 90, 4)
    for row, column, anchor in ((0, 0, 0), (2, 3, 1), (4, 5, 2)):
        place = (row * 6 + column) * 3 + anchor
        torch.testing.assert_close(logits[:, place], head.objectness(hidden)[:, anchor, row, column])
        wanted = head.deltas(hidden)[:, anchor * 4 : anchor * 4 + 4, row, column]
        torch.testing.assert_close(deltas[:, place], wanted)
