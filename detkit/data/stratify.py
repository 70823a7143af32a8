"""Sharing out images so that every class is in every part as often as the part's size has it."""

from collections.abc import Sequence

import numpy as np


def stratify(presence: np.ndarray, shares: Sequence[float], seed: int = 0) -> np.ndarray:
    """Return the part, 0 to len(shares) - 1, of each image, (F,) int64.

    presence: (F, C) bool, which classes an image shows; shares: fractions that sum to 1. The same for the same seed.
    Iterative stratification: Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-label Data, 2011,
    algorithm 1: the rarest class first, each of its images to the part that lacks most of it, ties to the part that
    lacks most images, then by lot.
    """
    rng = np.random.default_rng(seed)
    share = np.asarray(shares, dtype=np.float64)
    images, _ = presence.shape
    lacking = presence.sum(0)[:, None] * share  # (C, P) images of each class
    lacking_images = images * share
    part = np.full(images, -1, dtype=np.int64)
    left = presence.sum(0)
    queue = rng.permutation(images)

    def assign(image: int, wishes: np.ndarray) -> None:
        best = np.flatnonzero(wishes >= wishes.max() - 1e-9)
        totals = lacking_images[best]
        best = best[totals >= totals.max() - 1e-9]
        chosen = best[0] if len(best) == 1 else rng.choice(best)
        part[image] = chosen
        lacking[presence[image], chosen] -= 1
        lacking_images[chosen] -= 1

    while left.any():
        rarest = int(np.where(left > 0, left, images + 1).argmin())
        for image in queue[presence[queue, rarest] & (part[queue] < 0)].tolist():
            assign(image, lacking[rarest])
            left -= presence[image]
    for image in queue[part[queue] < 0].tolist():  # those without objects
        assign(image, lacking_images)
    return part
