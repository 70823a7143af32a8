"""Soft non-maximum suppression of a batch at once (Bodla, Singh, Chellappa, Davis: Soft-NMS, ICCV 2017).

The best box M of a group (one class in one image) is taken, the scores of the others fall by how much they overlap it,
and so on: nothing is dropped but what falls to the score threshold. All groups take their next box together.
"""

import torch
from torch import Tensor

from detkit.ops.boxes import box_iou, gather_boxes
from detkit.ops.candidates import score_boxes
from detkit.ops.sorting import argsort_descending, ranked_rows

METHODS = ("linear", "gaussian")


@torch.no_grad()
def soft_nms_dense(
    boxes: Tensor,
    scores: Tensor,
    *,
    method: str,
    iou: float,
    sigma: float,
    top_k: int,
    max_out: int,
    score: float | Tensor = -torch.inf,
) -> tuple[Tensor, Tensor, Tensor]:
    """Soft-NMS per class of a detector's raw output, where each box has a score for every class.

    boxes: (B, A, 4) xyxy shared by the classes, or (B, A, C, 4); scores: (B, A, C). method: `linear` multiplies a score
    by 1 - IoU where the IoU with M is `iou` or more (section 3), `gaussian` by exp(-IoU^2 / sigma) (equation 3). Scores
    below 0, as margins may be, stay as they are: those factors would raise them.
    top_k: how many boxes of each class in each image are looked at, the best ones. max_out: how many are returned of an
    image, over all classes. score: what scores must be above, before and after; one for all classes or (C,), one for
    each. Of equal scores the lower index, then the lower label, is better; boxes with a coordinate that is not finite
    are dropped.
    Returns the box index and the label (B, max_out), best first, padded with -1, and the new scores, padded with 0.
    """
    if method not in METHODS:
        raise ValueError(f"soft_nms: method {method!r} is not one of {', '.join(METHODS)}")
    batch = len(scores)
    candidates = score_boxes(boxes, scores, score).best(top_k).candidates()
    out = candidates.index.new_full((2, batch, max_out), -1)  # index and label
    out_scores = torch.zeros(batch, max_out, device=scores.device)
    if len(candidates.scores) == 0 or top_k <= 0 or max_out <= 0:
        return out[0], out[1], out_scores
    rows, filled = candidates.rows(argsort_descending(candidates.scores), top_k)
    present = filled.any(1).nonzero().squeeze(1)  # host sync: most classes are in few images
    rows, filled = rows[present], filled[present]
    filled &= candidates.boxes[rows].isfinite().all(-1)
    # 0, lest the IoU with what is not finite be NaN; and boxes of no area overlap nothing
    row_boxes = torch.where(filled.unsqueeze(-1), candidates.boxes[rows].float(), 0)
    count = min(rows.shape[1], max_out)
    column, lowered = _take(row_boxes, candidates.scores[rows].float(), filled, method, iou, sigma, count)

    threshold = score if isinstance(score, float | int) else score[candidates.label[rows[:, :1]]]
    stays = lowered > threshold
    kept, lowered = rows.gather(1, column)[stays], lowered[stays]  # host sync
    by_index = kept.argsort()  # of equal scores the earlier candidate is better
    kept, lowered = kept[by_index], lowered[by_index]
    best, filled = ranked_rows(candidates.image[kept], batch, argsort_descending(lowered), max_out)
    image, rank = filled.nonzero(as_tuple=True)  # host sync
    best = best[filled]
    out[:, image, rank] = torch.stack((candidates.index[kept[best]], candidates.label[kept[best]]))
    out_scores[image, rank] = lowered[best]
    return out[0], out[1], out_scores


def _take(
    boxes: Tensor, scores: Tensor, valid: Tensor, method: str, iou: float, sigma: float, count: int
) -> tuple[Tensor, Tensor]:
    """Take `count` boxes of each row, best first: boxes (G, K, 4), scores and valid (G, K) -> columns and scores
    (G, count), the scores -inf where a row has no more.

    One step a box, since each choice rests on those before it. As scores only fall, what a row gives after `count`
    boxes is never among the best `count` of an image.
    """
    left = torch.where(valid, scores, -torch.inf)
    columns = torch.zeros(len(left), count, dtype=torch.int64, device=left.device)
    taken = left.new_full((len(left), count), -torch.inf)
    for step in range(count):
        best, column = left.max(1, keepdim=True)  # the first of equals
        columns[:, step : step + 1] = column
        taken[:, step : step + 1] = best
        left.scatter_(1, column, -torch.inf)
        overlap = box_iou(gather_boxes(boxes, column), boxes).squeeze(1)
        factor = torch.exp(-(overlap**2) / sigma) if method == "gaussian" else 1 - overlap * (overlap >= iou)
        # a row that has no more takes its first column again and again, which must not matter
        left = torch.where((left > 0) & (best > -torch.inf), left * factor, left)
    return columns, taken
