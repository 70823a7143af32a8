"""Every detector, small: configs, batches that it takes, and what its network gives before decoding."""

from typing import Any

import torch
from torch import Tensor

import detkit
from detkit.backbones import create_backbone
from detkit.config import BackboneConfig
from detkit.models import Detector
from detkit.structures import Images, Proposals, Targets
from tests.builders import random_image

CLASSES = ("a", "b")
MODELS = ("fast_rcnn", "faster_rcnn", "rcnn", "sppnet", "ssd", "torchvision_ssd", "yolov1")
REGION = {"batch_size_per_image": 16}
POOLED = {**REGION, "size": [96, 160], "freeze_stages": 0, "freeze_norms": False, "pool_size": 4}
KEYS: dict[str, dict[str, Any]] = {
    "fast_rcnn": POOLED,
    "faster_rcnn": {
        **POOLED,
        "scales": [1.0, 2.0],
        "rpn_width": 16,
        "min_size": 1.0,
        "pre_nms_top_n": 60,
        "post_nms_top_n": 30,
        "test_pre_nms_top_n": 60,
        "test_post_nms_top_n": 12,
    },
    "rcnn": {"batch_size_per_image": 8, "crop": 96, "context": 8, "pool_size": 4},
    "sppnet": {"batch_size_per_image": 8, "scales": [96], "pyramid": [2, 1], "frozen": False},
    "ssd": {"size": 96},
    "torchvision_ssd": {"size": 300},
    "yolov1": {"size": 96, "convolutions": [[16, 3, 1]], "hidden": [16]},
}
# values of the small configs that some backbones can't see with: the side of the maps that fc6 and fc7 read is theirs
POOLING = ("fast_rcnn", "faster_rcnn", "rcnn")


def build(name: str, backbone: str = "tiny", **keys: Any) -> Detector:
    """A small detector on any backbone that fits."""
    keys = {**KEYS[name], **keys}
    if name in POOLING and "pool_size" in keys:
        with torch.device("meta"):
            side = create_backbone(BackboneConfig(backbone), tail=True).tail_size
        keys["pool_size"] = side or keys["pool_size"]
    return detkit.create_model(name, backbone=backbone, classes=CLASSES, **keys)


def fitted(name: str) -> tuple[str, ...]:
    """Beginnings of the parameters that stages other than gradient descent set."""
    return ("head.svm", "head.regressor") if name in ("rcnn", "sppnet") else ()


def side(detector: Detector) -> tuple[int, int]:
    """Height and width of images for it."""
    return detector.input.size if detector.input.resize == "stretch" else (96, 112)


def objects(*boxes: list[list[float]], ignore: bool = False) -> Targets:
    """Targets of a batch; labels take turns."""
    return Targets.pad(
        (torch.tensor(own).view(-1, 4), torch.arange(len(own)) % 2, torch.full((len(own),), ignore)) for own in boxes
    )


def regions(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(count, 4) boxes inside an image."""
    random = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=random) * 0.7
    high = low + 0.1 + 0.2 * torch.rand(count, 2, generator=random)
    return torch.cat((low, high), 1) * torch.tensor([width, height] * 2)


def sample_images(detector: Detector, batch: int = 2, around: Targets | None = None) -> Images:
    """Images that differ, padded where the detector takes such; proposals random, and around the objects."""
    height, width = side(detector)
    pixels = torch.cat([random_image(height, width, seed) for seed in range(batch)])
    sizes = torch.tensor([[height, width]] * batch)
    # SPPNet makes its canvas itself, from the largest image of a batch, whose border deeper layers see
    if detector.input.resize != "stretch" and detector.config.name != "sppnet":
        sizes[1:] -= torch.tensor([0, 13])
        pixels[1:, :, :, width - 13 :] = 0
    given = None
    if detector.takes_proposals:
        boxes = [regions(12 - image, height, width - 13, image) for image in range(batch)]
        if around is not None:
            boxes = [torch.cat((own[around.valid[image]], boxes[image])) for image, own in enumerate(around.boxes)]
        given = Proposals.pad(boxes)
    return Images(pixels, sizes, sizes, tuple(map(str, range(batch))), given)


def some_objects(detector: Detector) -> Targets:
    """Two objects on the first image, one on the second."""
    height, width = side(detector)
    share = torch.tensor([width - 14, height] * 2)
    boxes = ([[0.1, 0.2, 0.5, 0.7], [0.4, 0.1, 0.9, 0.9]], [[0.3, 0.3, 0.8, 0.6]])
    return objects(*((torch.tensor(own) * share).tolist() for own in boxes))
