"""Box operations beside torchvision's."""

from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import Tensor

from detkit.ops import box_iou, nms, roi_align
from detkit.runtime.race import Benchmark, Job, Runner, Setting

IMAGES = 16
BOXES, CLASSES = 10_000, 20
REGIONS = 500
THRESHOLD = 0.45


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


def compare_boxes(box_iou: Callable[[Tensor, Tensor], Tensor], setting: Setting) -> Job:
    a, b = random_boxes(1000, setting.device), random_boxes(1000, setting.device, 1)
    return lambda: box_iou(a, b)


def nms_detkit(images: int, setting: Setting) -> Job:
    boxes, scores, labels = scored(images, setting.device)
    return lambda: nms(boxes, scores, labels, iou=THRESHOLD, top_k=BOXES, max_out=BOXES)


def nms_torchvision(images: int, setting: Setting) -> Job:
    batch = list(zip(*scored(images, setting.device)))
    return lambda: [torchvision.ops.batched_nms(*image, THRESHOLD) for image in batch]


def align(pool: Callable[[Tensor, Tensor], Tensor], gradient: bool, setting: Setting) -> Job:
    """RoIAlign of REGIONS regions of an FPN's finest map, and its gradient."""
    torch.manual_seed(0)
    maps = torch.randn(1, 256, 200, 250, device=setting.device).contiguous(memory_format=torch.channels_last)
    boxes = random_boxes(REGIONS, setting.device)
    if not gradient:
        return torch.inference_mode()(lambda: pool(maps, boxes))
    pooled = pool(maps.requires_grad_(), boxes)
    weights = torch.randn_like(pooled)
    return lambda: torch.autograd.grad(pooled, maps, weights, retain_graph=True)


def align_detkit(maps: Tensor, boxes: Tensor) -> Tensor:
    return roi_align(maps, boxes.unsqueeze(0), 7, 4)


def align_torchvision(maps: Tensor, boxes: Tensor) -> Tensor:
    return torchvision.ops.roi_align(maps, [boxes], 7, 1 / 4, 2, aligned=True)


def beside_torchvision(name: str, ours: Callable[[Setting], Job], theirs: Callable[[Setting], Job]) -> Benchmark:
    return Benchmark(name, (Runner("detkit", ours, True), Runner("torchvision", theirs)))


BENCHMARKS = (
    beside_torchvision(
        "box_iou, 1000 x 1000", partial(compare_boxes, box_iou), partial(compare_boxes, torchvision.ops.box_iou)
    ),
    *(
        beside_torchvision(name, partial(nms_detkit, images), partial(nms_torchvision, images))
        for name, images in (
            (f"nms, {CLASSES} classes, {BOXES} boxes", 1),
            (f"nms, the same for {IMAGES} images", IMAGES),
        )
    ),
    *(
        beside_torchvision(name, partial(align, align_detkit, gradient), partial(align, align_torchvision, gradient))
        for name, gradient in (
            (f"roi_align, {REGIONS} regions of a map of 256 channels", False),
            ("the gradient of that", True),
        )
    ),
)
