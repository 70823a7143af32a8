"""Every detector, small: configs, and batches that it takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import detkit
from detkit.backbones import create_backbone
from detkit.config import BackboneConfig
from detkit.models import Detector
from detkit.models.region_features import PyramidFeatures
from detkit.ops import pack_masks
from detkit.structures import Images, Proposals, Targets
from tests.builders import objects_of, random_image

CLASSES = ("a", "b")
MODELS = (
    *("fast_rcnn", "faster_rcnn", "mask_rcnn", "rcnn", "retinanet", "rfcn", "sppnet", "ssd", "torchvision_ssd"),
    *("yolov1", "yolov2", "yolov3"),
)
REGION = {"batch_size_per_image": 16}
POOLED = {**REGION, "size": [96, 160], "freeze_stages": 0, "freeze_norms": False, "pool_size": 4}
RPN = {
    "scales": [1.0, 2.0],
    "rpn_width": 16,
    "min_size": 1.0,
    "pre_nms_top_n": 60,
    "post_nms_top_n": 30,
    "test_pre_nms_top_n": 60,
    "test_post_nms_top_n": 12,
}
KEYS: dict[str, dict[str, Any]] = {
    "fast_rcnn": POOLED,
    "faster_rcnn": {**POOLED, **RPN},
    "mask_rcnn": {**POOLED, **RPN, "neck": "none", "mask_pool_size": 4, "mask_convs": 1, "mask_channels": 8},
    "rcnn": {"batch_size_per_image": 8, "crop": 96, "context": 8, "pool_size": 4},
    "retinanet": {
        "size": [96, 160],
        "freeze_stages": 0,
        "freeze_norms": False,
        "channels": 16,
        "convs": 1,
        "size_divisor": 32,
        "pre_nms_top_n": 100_000,
    },
    "rfcn": {**POOLED, **RPN, "pool_size": 3, "reduced": 16},
    "sppnet": {"batch_size_per_image": 8, "scales": [96], "pyramid": [2, 1], "frozen": False},
    "ssd": {"size": 96},
    "torchvision_ssd": {"size": 300},
    "yolov2": {
        "size": 96,
        "train_sizes": [],
        "convolutions": [[16, 3, 1]],
        "passthrough": 8,
        "joined": [[16, 3, 1]],
        "anchors": [[1.0, 1.5], [2.0, 1.2]],
    },
    "yolov3": {
        "size": 96,
        "train_sizes": [],
        "convolutions": [[[16, 3, 1], [16, 1, 1], [16, 3, 1]], [[16, 3, 1]], [[16, 3, 1]]],
        "reduced": [8, 8],
        "anchors": [[16.0, 20.0], [32.0, 30.0], [50.0, 60.0]],
    },
    "yolov1": {"size": 96, "convolutions": [[16, 3, 1]], "hidden": [16]},
}
# layers whose weights as built give outputs that are too small, or all alike
DRAWN = ("head", "rpn", "mask_head", "classifier", "regressor", "scales", "score_maps", "box_maps")
POOLING = tuple(name for name in MODELS if "pool_size" in KEYS[name] and name != "rfcn")
HEIGHT, WIDTH = 96, 112  # of images for detectors that keep the aspect ratio
PADDED = 13  # columns by which the second image of a batch is narrower


def build(name: str, backbone: str = "tiny", weights: Path | None = None, **keys: Any) -> Detector:
    """Return a small detector on any backbone that fits; weights: a file for the backbone."""
    keys = {**KEYS[name], **keys}
    if "pool_size" in keys:  # the side of the maps that fc6 and fc7 read is the backbone's
        with torch.device("meta"):
            side = create_backbone(BackboneConfig(backbone), tail=True).tail_size
        keys["pool_size"] = side or keys["pool_size"]
    source = {"name": backbone, "weights": None if weights is None else str(weights)}
    return detkit.create_model(name, backbone=source, classes=CLASSES, **keys)


def trained(name: str, **keys: Any) -> Detector:
    """A detector whose every weight matters: as built, some are 0, and some outputs small."""
    torch.manual_seed(0)
    detector = build(name, **keys).eval()
    for key, layer in detector.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)  # pyright: ignore
            layer.running_var.uniform_(0.5, 1.5)  # pyright: ignore
        elif key.startswith(DRAWN) and isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.data.normal_(0, 2 / layer.weight[0].numel() ** 0.5)
    for key, buffer in detector.named_buffers():
        if key.startswith("head.delta"):
            buffer.uniform_(0.5, 1)
        elif key.endswith("_fitted"):
            buffer.fill_(True)
    return detector


def side(detector: Detector) -> tuple[int, int]:
    """Return height and width of images for it."""
    return detector.input.fit(HEIGHT, WIDTH)


def takes_padding(detector: Detector) -> bool:
    """Whether what pads an image changes none of its predictions."""
    # an image pyramid makes its canvas itself, from the largest image of a batch, whose border deeper layers see
    own_canvas = isinstance(getattr(detector, "features", None), PyramidFeatures)
    return detector.input.resize != "stretch" and not own_canvas


def regions(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return (count, 4) boxes inside an image."""
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=random) * 0.7
    high = low + 0.1 + 0.2 * torch.rand(count, 2, generator=random)
    return torch.cat((low, high), 1) * torch.tensor([width, height] * 2)


def sample_images(detector: Detector, batch: int = 2, around: Targets | None = None) -> Images:
    """Return images that differ, padded where the detector takes such; proposals random, and around the objects."""
    height, width = side(detector)
    pixels = torch.cat([random_image(height, width, seed) for seed in range(batch)])
    sizes = torch.tensor([[height, width]] * batch)
    if takes_padding(detector):
        sizes[1:] -= torch.tensor([0, PADDED])
        pixels[1:, :, :, width - PADDED :] = 0
    proposals = None
    if detector.takes_proposals:
        boxes = [regions(12 - image, height, width - PADDED, image) for image in range(batch)]
        if around is not None:
            objects = [image[valid] for image, valid in zip(around.boxes, around.valid)]
            boxes = [torch.cat(pair) for pair in zip(objects, boxes)]
        proposals = Proposals.pad(boxes)
    return Images(pixels, sizes, sizes, tuple(map(str, range(batch))), proposals)


def some_objects(detector: Detector) -> Targets:
    """Return two objects on the first image, one on the second."""
    height, width = side(detector)
    share = torch.tensor([width - PADDED - 1, height] * 2)
    boxes = ([[0.1, 0.2, 0.5, 0.7], [0.4, 0.1, 0.9, 0.9]], [[0.3, 0.3, 0.8, 0.6]])
    return with_masks(detector, objects_of(*((torch.tensor(image) * share).tolist() for image in boxes)))


def with_masks(detector: Detector, targets: Targets) -> Targets:
    """Give the objects masks, the left halves of their boxes, where the detector learns such."""
    if not detector.takes_masks:
        return targets
    (height, width), (left, top, right, bottom) = side(detector), targets.boxes.unsqueeze(-1).unbind(2)
    row, column = torch.arange(height + 0.0), torch.arange(width + 0.0)
    rows, columns = (row >= top.floor()) & (row < bottom), (column >= left.floor()) & (column < (left + right) / 2)
    masks = rows.unsqueeze(-1) & columns.unsqueeze(-2)
    packed = [torch.from_numpy(pack_masks(of_image.numpy().astype(np.uint8))) for of_image in masks]
    return replace(targets, extra={**targets.extra, "masks": torch.stack(packed)})
