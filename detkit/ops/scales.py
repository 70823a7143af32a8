"""At which size a photo, or a region of it, enters the network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detkit.ops.boxes import area


def short_side_scale(sizes: Tensor, short: float, longest: float) -> Tensor:
    """Return the factor (B,) float32 that makes each image's short side `short` pixels, unless its long side would
    then pass `longest`: in that case the factor that makes the long side `longest` (Fast R-CNN, section 5: 600, 1000).

    sizes: (B, 2), height and width in pixels. The aspect ratio stays.
    """
    sides = sizes.float()
    return torch.minimum(short / sides.amin(-1), longest / sides.amax(-1))


def sppnet_scale(boxes: Tensor, sizes: Tensor, short_sides: Sequence[float], target: float = 224.0) -> Tensor:
    """Return (B, R) int64: for each box the index of the scale at which its area is closest to target ** 2 pixels
    (SPPNet, section 4.1). Of equally close scales the first is taken, so that a box without area gets scale 0.

    boxes: (B, R, 4) xyxy in pixels of the photo; sizes: (B, 2), its height and width; short_sides: the short sides that
    the photo is scaled to. The authors' code instead takes the short side closest to 208 * min(sizes) / sqrt(area).
    """
    short = torch.tensor(tuple(short_sides), dtype=torch.float32, device=boxes.device)
    factor = short / sizes.to(boxes.device).float().amin(-1, keepdim=True)  # (B, S)
    scaled = area(boxes).unsqueeze(-1) * factor.square().unsqueeze(1)
    return (scaled - target**2).abs_().argmin(-1)
