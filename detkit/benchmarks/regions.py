"""R-CNN, SPPNet and Fast R-CNN on the same 2000 regions of one image: what sharing the convolutions is worth.

AlexNet under all three, at the papers' sizes, with random weights: the regions' contents do not change the time.
"""

from functools import partial
from typing import Any

import torch

from detkit.benchmarks.detectors import detection
from detkit.config import BackboneConfig, DetectConfig
from detkit.data.transforms import resize
from detkit.models import build_detector, model_config_type
from detkit.runtime.race import Benchmark, Job, Runner, Setting
from detkit.structures import Images, Proposals

HEIGHT, WIDTH, REGIONS, CLASSES = 375, 500, 2000, 20
SETTINGS = DetectConfig(score_threshold=0.0, top_k=300, nms_iou=0.3, detections_per_image=100)


def detect(name: str, keys: dict[str, Any], setting: Setting) -> Job:
    """Pixels to detections of a model with these keys of its config."""
    config = model_config_type(name)(backbone=BackboneConfig("alexnet"), **keys)
    detector = build_detector(config, tuple(map(str, range(CLASSES))))
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=generator).numpy()
    low = torch.rand(REGIONS, 2, generator=generator) * torch.tensor([WIDTH - 40.0, HEIGHT - 40.0])
    side = 20 + torch.rand(REGIONS, 2, generator=generator) * torch.tensor([WIDTH - 20.0, HEIGHT - 20.0])
    boxes = torch.cat((low, torch.minimum(low + side, torch.tensor([WIDTH, HEIGHT]))), -1)
    size = detector.input.fit(HEIGHT, WIDTH)
    pixels = torch.from_numpy(resize(image, size)).permute(2, 0, 1)[None]
    boxes = boxes * torch.tensor([size[1] / WIDTH, size[0] / HEIGHT]).repeat(2)
    images = Images(pixels, torch.tensor([size]), torch.tensor([[HEIGHT, WIDTH]]), ("0",), Proposals.pad([boxes]))
    return detection(detector, images, SETTINGS, setting.device)


def runner(name: str, model: str, **keys: Any) -> Runner:
    return Runner(name, partial(detect, model, keys), True)


BENCHMARKS = (
    Benchmark(
        "2000 regions of an image, AlexNet",
        (
            runner("Fast R-CNN", "fast_rcnn", pool_size=6),
            runner("SPPNet, one scale", "sppnet", scales=[688]),
            runner("SPPNet, five scales", "sppnet"),
            runner("R-CNN", "rcnn"),
        ),
    ),
)
