"""Box operations beside torchvision's."""

import torch
import torchvision
from torch import Tensor

from detkit.ops import box_iou, nms
from detkit.runtime.race import Benchmark, Job, Runner, Setting

IMAGES = 16
BOXES, CLASSES = 10_000, 20
THRESHOLD, TOP_K, KEEP = 0.45, 400, 200


def random_boxes(count: int, device: str, seed: int = 0) -> Tensor:
    """Return (count, 4) boxes of 10 to 200 pixels in an image of 1000."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 800
    return torch.cat((corner, corner + 10 + torch.rand(count, 2, generator=generator) * 190), 1).to(device)


def scored(images: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (images, BOXES, 4), scores and labels (images, BOXES)."""
    boxes = torch.stack([random_boxes(BOXES, device, seed) for seed in range(images)])
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(images, BOXES, generator=generator).to(device)
    labels = torch.randint(CLASSES, (images, BOXES), generator=generator).to(device)
    return boxes, scores, labels


def iou_detkit(setting: Setting) -> Job:
    a, b = random_boxes(1000, setting.device), random_boxes(1000, setting.device, 1)
    return lambda: box_iou(a, b)


def iou_torchvision(setting: Setting) -> Job:
    a, b = random_boxes(1000, setting.device), random_boxes(1000, setting.device, 1)
    return lambda: torchvision.ops.box_iou(a, b)


def _nms_detkit(images: int, setting: Setting) -> Job:
    boxes, scores, labels = scored(images, setting.device)
    return lambda: nms(boxes, scores, labels, iou=THRESHOLD, top_k=BOXES, max_out=BOXES)


def _nms_torchvision(images: int, setting: Setting) -> Job:
    batch = list(zip(*scored(images, setting.device)))
    return lambda: [torchvision.ops.batched_nms(*image, THRESHOLD) for image in batch]


def nms_detkit(setting: Setting) -> Job:
    return _nms_detkit(1, setting)


def nms_torchvision(setting: Setting) -> Job:
    return _nms_torchvision(1, setting)


def nms_batch_detkit(setting: Setting) -> Job:
    return _nms_detkit(IMAGES, setting)


def nms_batch_torchvision(setting: Setting) -> Job:
    return _nms_torchvision(IMAGES, setting)


BENCHMARKS = (
    Benchmark("box_iou, 1000 x 1000", (Runner("detkit", iou_detkit, True), Runner("torchvision", iou_torchvision))),
    Benchmark(
        f"nms, {CLASSES} classes, {BOXES} boxes",
        (Runner("detkit", nms_detkit, True), Runner("torchvision", nms_torchvision)),
    ),
    Benchmark(
        f"nms, the same for {IMAGES} images",
        (Runner("detkit", nms_batch_detkit, True), Runner("torchvision", nms_batch_torchvision)),
    ),
)
