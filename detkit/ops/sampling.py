"""Random samples of anchors and regions, of a whole batch at once."""

import torch
from torch import Tensor


@torch.no_grad()
def sample(positive: Tensor, negative: Tensor, number: int, fraction: float) -> tuple[Tensor, Tensor]:
    """Draw at most `number` of each image: at most `fraction` of them positives, filled up with negatives.

    positive, negative: (B, N) bool, disjoint. Returns index (B, K) int64 with K = min(number, N), the positives first,
    and valid (B, K) bool, False where an image has too few to draw from (Fast R-CNN, section 2.3; Faster R-CNN, 3.1.3).
    Drawn from torch's global generator of the device; every subset of a size is as likely.
    """
    keys = torch.rand(positive.shape, device=positive.device)
    rank = torch.where(positive, keys, 2).argsort(1).argsort(1)
    drawn = positive & (rank < int(number * fraction))
    left = number - drawn.sum(1, keepdim=True)
    rank = torch.where(negative, keys, 2).argsort(1).argsort(1)
    # drawn positives lie above 2, drawn negatives between 1 and 2
    keys = drawn * (2 + keys) + (negative & (rank < left)) * (1 + keys)
    best, index = keys.topk(min(number, keys.shape[1]), dim=1)
    return index, best > 0
