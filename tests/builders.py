"""Small inputs and models that several tests share."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detkit.config import BackboneConfig
from detkit.models.faster_rcnn import FasterRCNNConfig
from detkit.models.ssd import SSDConfig
from detkit.structures import Images


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Return a (1, 3, height, width) uint8 image with structure of every size, as images have."""
    random = torch.Generator().manual_seed(seed)
    layers = [
        interpolate(torch.rand(1, 3, side, side, generator=random), (height, width), mode="bilinear")
        for side in (2, 5, 13, 40, 120)
    ]
    sample_image = torch.stack(layers).mean(0)
    sample_image = (sample_image - sample_image.min()) / (sample_image.max() - sample_image.min())
    return (sample_image * 255).to(torch.uint8)


def tiny_ssd_config() -> SSDConfig:
    """Return an SSD of 96 pixels with four feature maps for backbones that are seen in a test."""
    return SSDConfig(
        backbone=BackboneConfig("tiny"),
        size=96,
        l2norm=[],
        extras=[[32, 64, 3, 2, 1]],
        batch_norm=False,
        min_sizes=[12.0, 24.0, 48.0, 72.0],
        max_sizes=[24.0, 48.0, 72.0, 90.0],
        aspect_ratios=[[2.0]] * 4,
    )


def tiny_faster_rcnn_config() -> FasterRCNNConfig:
    """Return a Faster R-CNN whose images are 64 pixels at their shorter side, with few regions."""
    return FasterRCNNConfig(
        backbone=BackboneConfig("tiny"),
        size=[64, 96],
        scales=[2.0, 4.0],
        rpn_width=16,
        pre_nms_top_n=100,
        post_nms_top_n=30,
        test_pre_nms_top_n=60,
        test_post_nms_top_n=12,
        min_size=2.0,
        batch_size_per_image=16,
        pool_size=3,
        freeze_stages=0,
        freeze_norms=False,
    )


def images_of(pixels: Tensor) -> Images:
    """Wrap (B, 3, H, W) uint8 pixels that are their own originals."""
    sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
    return Images(pixels, sizes, sizes, tuple(map(str, range(len(pixels)))))


def few_regions(image: np.ndarray, mode: str = "single", seed: int = 0) -> np.ndarray:
    """Stands for selective search, whose compilation takes seconds: (30, 4) boxes of 15 pixels a side."""
    height, width = image.shape[:2]
    low = np.random.default_rng(seed).random((30, 2)) * (width - 16, height - 16)
    return np.concatenate([low, low + 15], 1).astype(np.float32)
