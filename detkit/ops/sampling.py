"""Random samples of anchors and regions, of a batch at once."""

import torch
from torch import Tensor


@torch.no_grad()
def sample(
    positive: Tensor, negative: Tensor, batch_size_per_image: int, positive_fraction: float
) -> tuple[Tensor, Tensor]:
    """Sample anchors or regions of each image (Fast R-CNN, section 2.3; Faster R-CNN, section 3.1.3).

    positive, negative: (B, N) bool, disjoint. At most `positive_fraction` of `batch_size_per_image` are positives, the
    rest negatives. Returns index (B, K) int64, the positives first, with K = min(batch_size_per_image, N), and valid
    (B, K) bool, False where an image has too few. Every subset of a size is as likely; torch's global generator of the
    device decides.
    """
    keys = torch.rand(positive.shape, device=positive.device)
    rank = torch.where(positive, keys, 2).argsort(1).argsort(1)
    sampled_positive = positive & (rank < int(batch_size_per_image * positive_fraction))
    left = batch_size_per_image - sampled_positive.sum(1, keepdim=True)
    rank = torch.where(negative, keys, 2).argsort(1).argsort(1)
    sampled_negative = negative & (rank < left)
    # sampled positives lie above 2, sampled negatives between 1 and 2, all others at 0
    keys = sampled_positive * (2 + keys) + sampled_negative * (1 + keys)
    best, index = keys.topk(min(batch_size_per_image, keys.shape[1]), dim=1)
    return index, best > 0
