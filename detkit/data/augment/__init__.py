"""Augmentation by albumentations: the only package that knows that library.

`data.augment` names SSD's transforms, defined here, and any of albumentations' that boxes can follow. Boxes travel in
albumentations' own format, fractions of the image, with the row number of the object as a fifth column; they are
clipped, and the empty ones dropped, before and after every transform. All randomness of a sample comes from its seed.
"""

import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or the import asks the network for a newer version

from detkit.data.augment.chain import Chain

__all__ = ["Chain"]
