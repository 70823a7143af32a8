"""Sharing out images so that every class is in every part as often as the part's size has it."""

from collections.abc import Sequence

import numpy as np


def stratify(
    presence: np.ndarray, shares: Sequence[float], seed: int = 0, groups: np.ndarray | None = None
) -> np.ndarray:
    """Return the part, 0 to len(shares) - 1, of each image, (F,) int64.

    presence: (F, C) bool, which classes an image shows; shares: fractions that sum to 1. groups: (F,) int64 from 0 on,
    images of one group come into one part; by default each is one. The same for the same seed.
    Iterative stratification: Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-label Data, 2011,
    algorithm 1: the rarest class first, each of its images to the part that lacks most of it, ties to the part that
    lacks most images, then by lot. Here large groups come before small ones.
    """
    rng = np.random.default_rng(seed)
    share = np.asarray(shares, dtype=np.float64)
    groups = np.arange(len(presence)) if groups is None else groups
    images = np.bincount(groups)  # of each group
    shown = np.zeros((len(images), presence.shape[1]), dtype=np.int64)  # how many of them show each class
    np.add.at(shown, groups, presence)
    lacking = shown.sum(0)[:, None] * share  # (C, P) images of each class
    lacking_images = len(groups) * share
    part = np.full(len(images), -1, dtype=np.int64)
    left = shown.sum(0)
    queue = rng.permutation(len(images))
    queue = queue[np.argsort(-images[queue], kind="stable")]

    def assign(group: int, wishes: np.ndarray) -> None:
        best = np.flatnonzero(wishes >= wishes.max() - 1e-9)
        totals = lacking_images[best]
        best = best[totals >= totals.max() - 1e-9]
        chosen = best[0] if len(best) == 1 else rng.choice(best)
        part[group] = chosen
        lacking[:, chosen] -= shown[group]
        lacking_images[chosen] -= images[group]

    while left.any():
        rarest = int(np.where(left > 0, left, len(groups) + 1).argmin())
        for group in queue[(shown[queue, rarest] > 0) & (part[queue] < 0)].tolist():
            assign(group, lacking[rarest])
            left -= shown[group]
    for group in queue[part[queue] < 0].tolist():  # those without objects
        assign(group, lacking_images)
    return part[groups]
