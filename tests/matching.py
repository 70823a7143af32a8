"""Whether two detectors find the same, where rounding decides what is beside a threshold.

Two implementations of one detector round differently, and so does one on two processors. A score beside the score
threshold, an IoU beside that of NMS and two scores that are nearly equal then fall to either side, and a few detections
are others.
"""

import torch
from torch import Tensor

from detkit.ops import box_iou

IOU_MARGIN = 1e-3  # how far rounding of boxes moves an IoU

Found = tuple[Tensor, Tensor, Tensor]  # boxes (N, 4), scores (N,), labels (N,) of one image


def assert_same_detections(
    found: Found,
    wanted: Found,
    *,
    score: float,
    iou: float | None,
    keep: int,
    score_atol: float = 1e-4,
    box_atol: float = 0.05,
    box_rtol: float = 1e-3,
) -> None:
    """Check that each detection of either has its like among the other's: of its label, with a close score and box.

    Excused are those that a threshold may have decided. score: the detections are above it; iou: of NMS, or None for
    soft-NMS; keep: the most detections of an image. One in 20 may be excused, and one in any case: where there are
    more, something other than rounding is to blame.
    """
    assert len(found[2]) <= keep
    assert len(wanted[2]) <= keep
    pairs = pair(found, wanted, score_atol, box_atol, box_rtol)
    lone = unpaired(len(found[2]), [i for i, _ in pairs])
    their_lone = unpaired(len(wanted[2]), [j for _, j in pairs])
    excused = lone & lowest(found, wanted, score, keep, score_atol)
    their_excused = their_lone & lowest(wanted, found, score, keep, score_atol)
    if iou is not None:
        by_nms(found, wanted, lone, their_lone, excused, their_excused, iou, score_atol)
    for name, detections, alone, beside in (
        ("found", found, lone, excused),
        ("wanted", wanted, their_lone, their_excused),
    ):
        clear = alone & ~beside
        assert not clear.any(), f"{name} by one only, and clear of every threshold: {[x[clear] for x in detections]}"
        assert alone.sum() <= max(1, len(alone) // 20), f"{int(alone.sum())} of {len(alone)} {name} by one only"


def pair(found: Found, wanted: Found, score_atol: float, box_atol: float, box_rtol: float) -> list[tuple[int, int]]:
    """Return pairs of detections that are alike, each detection in one pair at most."""
    (boxes, scores, labels), (their_boxes, their_scores, their_labels) = found, wanted
    alike = labels.unsqueeze(1) == their_labels
    alike &= (scores.unsqueeze(1) - their_scores).abs() <= score_atol
    alike &= ((boxes.unsqueeze(1) - their_boxes).abs() <= box_atol + box_rtol * their_boxes.abs()).all(-1)
    pairs, free = [], torch.ones(len(their_labels), dtype=torch.bool)
    for i, row in enumerate(alike):
        candidates = (row & free).nonzero().flatten().tolist()
        if candidates:
            pairs.append((i, candidates[0]))
            free[candidates[0]] = False
    return pairs


def unpaired(count: int, paired: list[int]) -> Tensor:
    """Return (count,) bool, whether a detection is in no pair."""
    lone = torch.ones(count, dtype=torch.bool)
    lone[paired] = False
    return lone


def lowest(found: Found, others: Found, score: float, keep: int, atol: float) -> Tensor:
    """Return which of the detections found the others may lack for their score: (N,) bool."""
    if len(others[2]) == keep:
        score = max(score, float(others[1].min()))
    return found[1] <= score + atol


def by_nms(
    found: Found,
    wanted: Found,
    lone: Tensor,
    their_lone: Tensor,
    excused: Tensor,
    their_excused: Tensor,
    iou: float,
    atol: float,
) -> None:
    """Add to `excused` and `their_excused` the lone detections that NMS may have dropped on the other side."""
    overlap = box_iou(found[0], wanted[0]) * (found[2].unsqueeze(1) == wanted[2])
    difference = found[1].unsqueeze(1) - wanted[1]
    toss = (overlap - iou).abs() <= IOU_MARGIN
    # one keeps this box, the other that one, as their scores are nearly equal
    over = (overlap > iou) & lone.unsqueeze(1) & their_lone
    swapped = over & (difference.abs() <= atol)
    excused |= lone & ((toss & (difference <= atol)) | swapped).any(1)
    their_excused |= their_lone & ((toss & (difference >= -atol)) | swapped).any(0)
    # a box that is there or not decides of those that it overlaps, these of others, and so on
    for _ in range(len(found[2]) + len(wanted[2])):
        excused |= (over & their_excused & (difference <= atol)).any(1)
        their_excused |= (over & excused.unsqueeze(1) & (difference >= -atol)).any(0)
