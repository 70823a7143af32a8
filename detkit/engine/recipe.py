"""A recipe by the size of a data set: how `train --data` changes a config of configs/custom."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from detkit.config import Config
from detkit.data.dataset import DetectionDataset
from detkit.engine.length import in_steps

IMAGES = 300  # which the lengths in configs/custom are for
USUAL_OBJECTS = 2.5  # in an image; where there are more, each image teaches more
MANY = 1000  # images, from which on each is seen less often
CACHED = 10**9  # bytes of decoded images that are kept in memory, at most
# the sides cut or padded by up to a fifth, which shows objects larger and smaller
CUT_OR_PAD = {"CropAndPad": {"percent": [-0.2, 0.2], "keep_size": False, "border_mode": 1, "p": 1.0}}
# what the sizes of a class vary by, from which on that is worth something: those of playing cards on tables by .25, of
# VOC's classes by .76, of cells under one microscope, which are never seen larger or smaller, by .13
VARIED = 0.2
SIDED = re.compile(r"(^|[^a-z])(left|right)([^a-z]|$)", re.IGNORECASE)  # classes that a mirror exchanges


@dataclass(frozen=True)
class Size:
    """What is known of training data.

    pixels: of all images. spread: the standard deviation, within a class, of the logarithm of an object's side, which
    is the root of its share of the image's area.
    """

    images: int
    objects: int
    pixels: int
    classes: tuple[str, ...]
    spread: float

    @classmethod
    def of(cls, dataset: DetectionDataset, use_difficult: bool) -> "Size":
        """Return the size of a data set, without what is not trained on."""
        truth = dataset.truth(use_difficult).to("cpu")
        pixels = torch.as_tensor(dataset.sizes).prod(1)
        counts = ~truth.ignore & (truth.boxes[:, 2:] > truth.boxes[:, :2]).all(1)
        labels, sides = truth.labels[counts], truth.boxes[counts, 2:] - truth.boxes[counts, :2]
        side = (sides.double().prod(1) / pixels[truth.image[counts]]).log() / 2
        total = torch.zeros(2, len(dataset.classes), dtype=torch.float64)
        total.index_add_(1, labels, torch.stack((side, torch.ones_like(side))))
        mean = total[0] / total[1].clamp(min=1)
        spread = float((side - mean[labels]).square().mean().sqrt()) if len(side) else 0.0
        return cls(len(dataset), int((~truth.ignore).sum()), int(pixels.sum()), dataset.classes, spread)

    @property
    def repeats(self) -> float:
        """How often each image is to be seen, 1 being usual: less where there are many, or many objects in each."""
        crowded = (USUAL_OBJECTS * self.images / max(1, self.objects)) ** (1 / 3)
        return min(1.0, max(0.5, crowded)) * min(1.0, (MANY / self.images) ** 0.35)


def choose_recipe(size: Size, base: Config, *, has_val: bool, has_length: bool) -> dict[str, Any]:
    """Return keys of a config, and their values.

    base: the config that is changed. has_val: whether there are images to choose a checkpoint by. has_length: whether
    `base` says how long to train, and this is to stay.
    """
    train, keys = base.train, dict[str, Any]()
    # upright: neither turned nor upside down
    mirrors = not any(map(SIDED.search, size.classes))
    augment = [*[CUT_OR_PAD] * (size.spread >= VARIED), "PhotometricDistort", *["HorizontalFlip"] * mirrors]
    if has_length:
        iterations = in_steps(train, size.images).iterations
    else:
        factor = max(0.5, size.repeats * size.images / IMAGES)
        iterations = keys["train.iterations"] = max(1, round(train.iterations * factor))
    return {
        **keys,
        "train.warmup": min(iterations, 500, max(10, iterations // 20)),
        # an average over about a sixth of the training
        "train.ema": round(min(0.9998, max(0.9, 1 - 6 / iterations)), 4),
        "train.evaluate_every": 0.1 if has_val else 0,
        "train.save_every": max(20, iterations // 20),
        "data.augment": augment,
        "data.cache": base.data.cache and 3 * size.pixels <= CACHED,
    }
