"""A recipe by the size of a data set: how `train --data` changes a config of configs/custom."""

import re
from dataclasses import dataclass
from typing import Any

from detkit.config import Config
from detkit.data.dataset import DetectionDataset
from detkit.engine.length import in_steps

IMAGES = 300  # which the lengths in configs/custom are for
USUAL_OBJECTS = 2.5  # in an image; where there are more, each image teaches more
MANY = 1000  # images, from which on each is seen less often
CACHED = 10**9  # bytes of decoded images that are kept in memory, at most
# upright: neither turned nor upside down; the sides cut or padded by up to a fifth
UPRIGHT = [
    {"CropAndPad": {"percent": [-0.2, 0.2], "keep_size": False, "border_mode": 1, "p": 1.0}},
    "PhotometricDistort",
]
SIDED = re.compile(r"(^|[^a-z])(left|right)([^a-z]|$)", re.IGNORECASE)  # classes that a mirror exchanges


@dataclass(frozen=True)
class Size:
    """What is known of training data. pixels: of all images."""

    images: int
    objects: int
    pixels: int
    classes: tuple[str, ...]

    @classmethod
    def of(cls, dataset: DetectionDataset, use_difficult: bool) -> "Size":
        """Return the size of a data set, without what is not trained on."""
        objects = int((~dataset.truth(use_difficult).ignore).sum())
        return cls(len(dataset), objects, int(dataset.sizes.prod(1).sum()), dataset.classes)

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
        "data.augment": [*UPRIGHT, *([] if any(map(SIDED.search, size.classes)) else ["HorizontalFlip"])],
        "data.cache": base.data.cache and 3 * size.pixels <= CACHED,
    }
