"""At which size an image, or a region of it, enters the network."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detkit.ops.boxes import area


def short_side_scale(sizes: Tensor, short: float | Tensor, longest: float) -> Tensor:
    """Return the factor (B,) float32 that makes each image's short side `short` pixels, unless its long side would
    then pass `longest`: in that case the factor that makes the long side `longest` (Fast R-CNN, section 5: 600, 1000).

    sizes: (B, 2), height and width in pixels; short: of all, or of each, (B,). The aspect ratio stays.
    """
    sides = sizes.float()
    return torch.minimum(short / sides.amin(-1), longest / sides.amax(-1))


def sppnet_scale(boxes: Tensor, sizes: Tensor, short_sides: Sequence[float], target: float = 224.0) -> Tensor:
    """Return (B, R) int64: for each box the index of the scale at which its area is closest to target ** 2 pixels
    (SPPNet, section 4.1). Of equally close scales the first is taken, so that a box without area gets scale 0.

    boxes: (B, R, 4) xyxy in pixels of the image; sizes: (B, 2), its height and width; short_sides: the short sides that
    the image is scaled to. The authors' code instead takes the short side closest to 208 * min(sizes) / sqrt(area).
    """
    short = torch.tensor(tuple(short_sides), dtype=torch.float32, device=boxes.device)
    factor = short / sizes.to(boxes.device).float().amin(-1, keepdim=True)  # (B, S)
    scaled = area(boxes).unsqueeze(-1) * factor.square().unsqueeze(1)
    return (scaled - target**2).abs_().argmin(-1)


def rescale(pixels: Tensor, sizes: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Resize each image of a padded batch by its factor, bilinear and without antialiasing, as the loader does.

    pixels: (B, C, H, W) float, images at the upper left; sizes: (B, 2), height and width of each; factor: (B,), pixels
    a pixel of the image, so that boxes times it are boxes of the result. Returns (B, C, h, w), 0 where an image is
    padded, and the images' new sizes (B, 2), round(size * factor); h and w are those of the largest.
    """
    scaled = (sizes * factor.unsqueeze(1)).round().clamp(min=1)  # (B, 2)
    # host sync: the size of the result, once a scale, before a backbone runs on it
    height, width = (int(side) for side in scaled.amax(0).tolist())
    axes, inside = [], []
    for axis, (length, full) in enumerate(((height, pixels.shape[2]), (width, pixels.shape[3]))):
        pixel = torch.arange(length, device=pixels.device, dtype=pixels.dtype)
        source = (pixel + 0.5) / factor.to(pixels.dtype).unsqueeze(1) - 0.5
        source = source.clamp(min=0).minimum(sizes[:, axis, None].to(pixels.dtype) - 1)  # edge pixels are repeated
        axes.append((source + 0.5) * (2 / full) - 1)  # grid_sample's coordinates
        inside.append(pixel < scaled[:, axis, None])
    shape = (len(pixels), height, width)
    grid = torch.stack((axes[1].unsqueeze(1).expand(shape), axes[0].unsqueeze(2).expand(shape)), -1)
    resized = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    return resized * (inside[0].unsqueeze(2) & inside[1].unsqueeze(1)).unsqueeze(1), scaled.long()
