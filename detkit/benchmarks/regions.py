"""R-CNN, SPPNet and Fast R-CNN on the same 2000 regions of one image: what sharing the convolutions is worth.

AlexNet under all three, at the papers' sizes, with random weights: the regions' contents do not change the time.
"""

import torch

from detkit.config import BackboneConfig, DetectConfig
from detkit.data.transforms import resize
from detkit.models import build_detector, model_config_type, postprocess
from detkit.runtime.device import images_to_device, to_device
from detkit.runtime.race import Benchmark, Job, Runner, Setting
from detkit.structures import Images, Proposals

HEIGHT, WIDTH, REGIONS, CLASSES = 375, 500, 2000, 20


def _detect(setting: Setting, name: str, **keys) -> Job:
    """Pixels to detections."""

    config = model_config_type(name)(backbone=BackboneConfig("alexnet"), **keys)
    device = torch.device(setting.device)
    detector = build_detector(config, tuple(map(str, range(CLASSES)))).eval()
    to_device(detector, device, channels_last=True)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=torch.uint8, generator=generator).numpy()
    low = torch.rand(REGIONS, 2, generator=generator) * torch.tensor([WIDTH - 40.0, HEIGHT - 40.0])
    side = 20 + torch.rand(REGIONS, 2, generator=generator) * torch.tensor([WIDTH - 20.0, HEIGHT - 20.0])
    boxes = torch.cat((low, torch.minimum(low + side, torch.tensor([WIDTH, HEIGHT]))), -1)
    size = detector.input.fit(HEIGHT, WIDTH)
    pixels = torch.from_numpy(resize(image, size)).permute(2, 0, 1)[None]
    boxes = boxes * torch.tensor([size[1] / WIDTH, size[0] / HEIGHT]).repeat(2)
    images = Images(pixels, torch.tensor([size]), torch.tensor([[HEIGHT, WIDTH]]), ("0",), Proposals.pad([boxes]))
    images = images_to_device(images, device, channels_last=True)

    @torch.inference_mode()
    def job() -> object:
        return postprocess(
            detector.predict(images),
            images,
            DetectConfig(score_threshold=0.0, top_k=300, nms_iou=0.3, detections_per_image=100),
        )

    return job


def fast_rcnn(setting: Setting) -> Job:
    return _detect(setting, "fast_rcnn", pool_size=6)


def sppnet(setting: Setting) -> Job:
    return _detect(setting, "sppnet", scales=[688])


def sppnet_pyramid(setting: Setting) -> Job:
    return _detect(setting, "sppnet")


def rcnn(setting: Setting) -> Job:
    return _detect(setting, "rcnn")


BENCHMARKS = (
    Benchmark(
        "2000 regions of an image, AlexNet",
        (
            Runner("Fast R-CNN", fast_rcnn, True),
            Runner("SPPNet, one scale", sppnet, True),
            Runner("SPPNet, five scales", sppnet_pyramid, True),
            Runner("R-CNN", rcnn, True),
        ),
    ),
)
