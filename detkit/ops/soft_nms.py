"""Soft non-maximum suppression of a whole batch at once (Bodla, Singh, Chellappa, Davis: Soft-NMS, ICCV 2017).

The best box M of a group (one class in one image) is taken, the scores of the others fall by how much they overlap it,
and so on: nothing is dropped but what falls to the score threshold. All groups take their next box together.
"""

import torch
from torch import Tensor

from detkit.ops.boxes import box_iou
from detkit.ops.nms import descending, table_of, topk_candidates

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
    batch, _, classes = scores.shape
    found = topk_candidates(boxes, scores, top_k, score)
    index = found.image.new_full((2, batch, max_out), -1)
    values = torch.zeros(batch, max_out, device=scores.device)
    if len(found.scores) == 0 or top_k <= 0 or max_out <= 0:
        return index[0], index[1], values
    table, inside = table_of(found.group, batch * classes, descending(found.scores), top_k)
    some = inside.any(1).nonzero().squeeze(1)  # host sync: most classes are in few images
    table, inside = table[some], inside[some]
    inside &= found.boxes[table].isfinite().all(-1)
    # 0, lest the IoU with what is not finite be NaN; and boxes of no area overlap nothing
    rows = torch.where(inside.unsqueeze(-1), found.boxes[table].float(), 0)
    column, taken = _take(rows, found.scores[table].float(), inside, method, iou, sigma, min(table.shape[1], max_out))

    least = score if isinstance(score, float | int) else score[found.label[table[:, :1]]]
    stays = taken > least
    place, after = table.gather(1, column)[stays], taken[stays]  # host sync
    order = place.argsort()  # of equal scores the earlier candidate is better
    place, after = place[order], after[order]
    best, real = table_of(found.image[place], batch, descending(after), max_out)
    row, rank = real.nonzero(as_tuple=True)  # host sync
    best = best[real]
    index[:, row, rank] = torch.stack((found.index[place[best]], found.label[place[best]]))
    values[row, rank] = after[best]
    return index[0], index[1], values


def _take(
    boxes: Tensor, scores: Tensor, inside: Tensor, method: str, iou: float, sigma: float, count: int
) -> tuple[Tensor, Tensor]:
    """Take `count` boxes of each row, best first: boxes (G, K, 4), scores and inside (G, K) -> columns and scores
    (G, count), the scores -inf where a row has no more.

    One step a box, since each choice rests on those before it. As scores only fall, what a row gives after `count`
    boxes is never among the best `count` of an image.
    """
    left = torch.where(inside, scores, -torch.inf)
    column = torch.zeros(len(left), count, dtype=torch.int64, device=left.device)
    taken = left.new_full((len(left), count), -torch.inf)
    for step in range(count):
        best, at = left.max(1, keepdim=True)  # the first of equals
        column[:, step : step + 1], taken[:, step : step + 1] = at, best
        left.scatter_(1, at, -torch.inf)
        chosen = boxes.gather(1, at.unsqueeze(-1).expand(-1, -1, 4))
        overlap = box_iou(chosen, boxes).squeeze(1)
        factor = torch.exp(-(overlap**2) / sigma) if method == "gaussian" else 1 - overlap * (overlap >= iou)
        # a row that has no more takes its first column again and again, which must not matter
        left = torch.where((left > 0) & (best > -torch.inf), left * factor, left)
    return column, taken
