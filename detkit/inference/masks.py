"""The masks of detections, small as a detector finds them, as run lengths of whole images."""

from dataclasses import replace

from torch import Tensor

from detkit import rle
from detkit.ops import object_masks
from detkit.rle import RLE
from detkit.structures import Detections


def take_masks(detections: Detections, sizes: Tensor) -> tuple[Detections, list[RLE]]:
    """Return detections without `masks` in `extra`, and the masks of all that are no padding, image by image.

    sizes: (B, 2) height and width of the images. Waits for the device.
    """
    extra = dict(detections.extra)
    del extra["masks"]
    found: list[RLE] = []
    for one, size in zip(detections.unpad(), sizes.tolist()):  # images differ in size
        masks = object_masks(one.extra["masks"][0], one.boxes[0], (size[0], size[1]))
        found += rle.encode(masks.cpu().numpy())
    return replace(detections, extra=extra), found
