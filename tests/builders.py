"""Small inputs and models that several tests share."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from detkit.checkpoints import checkpoint
from detkit.config import BackboneConfig, Config, DataConfig, TrainConfig
from detkit.models import Detector
from detkit.models.fast_rcnn import FastRCNNConfig
from detkit.models.faster_rcnn import FasterRCNNConfig
from detkit.models.ssd import SSDConfig
from detkit.structures import Images, Proposals, Targets

# the published default boxes, as `default_boxes` takes them
SSD300 = {
    "maps": [(n, n) for n in (38, 19, 10, 5, 3, 1)],
    "steps": [8, 16, 32, 64, 100, 300],
    "min_sizes": [30, 60, 111, 162, 213, 264],
    "max_sizes": [60, 111, 162, 213, 264, 315],
    "aspect_ratios": [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
}
SSD512 = {
    "maps": [(n, n) for n in (64, 32, 16, 8, 4, 2, 1)],
    "steps": [8, 16, 32, 64, 128, 256, 512],
    "min_sizes": [35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8],
    "max_sizes": [76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6],
    "aspect_ratios": [[2], [2, 3], [2, 3], [2, 3], [2, 3], [2], [2]],
}


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    """Return a (1, 3, height, width) uint8 image with structure of every size, as images have."""
    random = torch.Generator().manual_seed(seed)
    layers = [
        interpolate(torch.rand(1, 3, side, side, generator=random), (height, width), mode="bilinear")
        for side in (2, 5, 13, 40, 120)
    ]
    image = torch.stack(layers).mean(0)
    image = (image - image.min()) / (image.max() - image.min())
    return (image * 255).to(torch.uint8)


def sample_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return the same as a (height, width, 3) array."""
    return np.ascontiguousarray(random_image(height, width, seed)[0].permute(1, 2, 0).numpy())


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


def tiny_faster_rcnn_config(**keys: Any) -> FasterRCNNConfig:
    """Return a Faster R-CNN whose images are 64 pixels at their shorter side, with few regions."""
    small = FasterRCNNConfig(
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
    return replace(small, **keys)


def tiny_fast_rcnn_config(**keys: Any) -> FastRCNNConfig:
    """Return a Fast R-CNN for images of 64 pixels at their shorter side."""
    small = FastRCNNConfig(
        backbone=BackboneConfig("tiny"),
        size=[64, 96],
        pool_size=3,
        batch_size_per_image=16,
        freeze_stages=0,
        freeze_norms=False,
    )
    return replace(small, **keys)


def batch_with_proposals(count: int = 40) -> tuple[Images, Targets]:
    """Return two images of 64 x 80: one with two objects and proposals around them, one without objects."""
    generator = torch.Generator().manual_seed(0)
    targets = Targets.pad(
        [
            (torch.tensor([[10.0, 20, 40, 50], [30, 5, 70, 40]]), torch.tensor([0, 1]), torch.zeros(2) > 0),
            (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0) > 0),
        ]
    )
    low = torch.rand(2, count, 2, generator=generator) * torch.tensor([50.0, 40])
    boxes = torch.cat((low, low + 10 + torch.rand(2, count, 2, generator=generator) * 20), -1)
    boxes[0, : count // 2] = targets.boxes[0, [0, 1] * (count // 4)] + torch.randn(count // 2, 4, generator=generator)
    proposals = Proposals.pad([boxes[0], boxes[1, : count // 2]])
    sizes = torch.tensor([[64, 80]] * 2)
    return Images(random_image(64, 80).repeat(2, 1, 1, 1), sizes, sizes, ("a", "b"), proposals), targets


def objects_of(*boxes: list[list[float]], ignore: bool = False) -> Targets:
    """Return the targets of a batch, one list of boxes an image; labels alternate between 0 and 1."""
    return Targets.pad(
        (torch.tensor(image).view(-1, 4), torch.arange(len(image)) % 2, torch.full((len(image),), ignore))
        for image in boxes
    )


def save_checkpoint(path: Path, detector: Detector) -> Path:
    """Write a detector as a checkpoint of a run that names no data."""
    checkpoint.save(path, detector, Config(detector.config, DataConfig(root=""), TrainConfig(iterations=1)))
    return path


def images_of(pixels: Tensor) -> Images:
    """Wrap (B, 3, H, W) uint8 pixels that are their own originals."""
    sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
    return Images(pixels, sizes, sizes, tuple(map(str, range(len(pixels)))))


def few_regions(image: np.ndarray, mode: str = "single", seed: int = 0, max_side: int | None = None) -> np.ndarray:
    """Stands for selective search, whose compilation takes seconds: (30, 4) boxes of 15 pixels a side."""
    height, width = image.shape[:2]
    low = np.random.default_rng(seed).random((30, 2)) * (width - 16, height - 16)
    return np.concatenate([low, low + 15], 1).astype(np.float32)
