"""Batches of the training stream, and how they are compared."""

import torch

from detkit.structures import Images, Targets

Batch = tuple[Images, Targets]
AUGMENT = ["PhotometricDistort", "Expand", "IoUCrop", "RandomInterpolationResize", "HorizontalFlip"]


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    """Assert that two lists of batches have the same images and objects, bit for bit; proposals are not looked at."""
    assert len(ours) == len(theirs)
    for (images, targets), (images2, targets2) in zip(ours, theirs):
        assert images.ids == images2.ids
        for field in ("pixels", "sizes", "original"):
            assert torch.equal(getattr(images, field), getattr(images2, field))
        for field in ("boxes", "labels", "ignore"):
            assert torch.equal(getattr(targets, field), getattr(targets2, field))
