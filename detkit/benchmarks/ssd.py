"""SSD300-VGG16 beside torchvision's `ssd300_vgg16`: from uint8 pixels to detections, and one step of training.

detkit runs as its commands run it. torchvision runs as its documentation has it; and once more with detkit's memory
settings, which shows how much of the difference is due to them.
"""

from functools import partial

import torch
from torch import Tensor, nn

from detkit.config import DetectConfig
from detkit.models import build_detector, postprocess
from detkit.models.ssd import SSDConfig
from detkit.runtime.device import images_to_device, to_device
from detkit.runtime.race import Job, Setting, against_torchvision
from detkit.structures import Images, Targets

SIZE, CLASSES, BATCH = 300, 20, 4


def pixels(batch: int, setting: Setting) -> Tensor:
    """Return (batch, 3, SIZE, SIZE) uint8 noise, smooth enough to look like images to a network."""
    coarse = torch.rand(batch, 3, 30, 30, generator=torch.Generator().manual_seed(0))
    image = nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear")
    return (image * 255).to(torch.uint8).to(setting.device)


def objects(batch: int) -> tuple[Tensor, Tensor]:
    """Return boxes (batch, 3, 4) and labels (batch, 3)."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(batch, 3, 2, generator=generator) * SIZE / 2
    boxes = torch.cat((corner, corner + 20 + torch.rand(batch, 3, 2, generator=generator) * SIZE / 3), -1)
    return boxes, torch.randint(CLASSES, (batch, 3), generator=generator)


def detkit_model(setting: Setting):

    detector = build_detector(SSDConfig(), tuple(f"class{i}" for i in range(CLASSES)))
    to_device(detector, torch.device(setting.device), channels_last=True)
    return detector


def detkit_images(setting: Setting, batch: int):

    sizes = torch.tensor([[SIZE, SIZE]] * batch)
    images = Images(pixels(batch, setting), sizes, sizes, tuple(map(str, range(batch))))
    return images_to_device(images, torch.device(setting.device), channels_last=True)


def detect_detkit(batch: int, setting: Setting) -> Job:

    detector, images, settings = detkit_model(setting).eval(), detkit_images(setting, batch), DetectConfig()

    @torch.inference_mode()
    def job() -> object:
        return postprocess(detector.predict(images), images, settings)

    return job


def detect_torchvision(batch: int, setting: Setting) -> Job:
    from torchvision.models.detection import ssd300_vgg16

    model = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES + 1).eval().to(setting.device)
    images = list(pixels(batch, setting))

    @torch.inference_mode()
    def job() -> object:
        return model([image / 255 for image in images])

    return job


def train_detkit(setting: Setting) -> Job:

    detector, images = detkit_model(setting).train(), detkit_images(setting, BATCH)
    boxes, labels = objects(BATCH)
    targets = Targets(boxes, labels, torch.zeros_like(labels, dtype=torch.bool)).to(setting.device)
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True)

    def job() -> None:
        optimizer.zero_grad()
        torch.stack(list(detector(images, targets).values())).sum().backward()
        optimizer.step()

    return job


def train_torchvision(setting: Setting) -> Job:
    from torchvision.models.detection import ssd300_vgg16

    model = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES + 1).train().to(setting.device)
    images = list(pixels(BATCH, setting))
    targets = [
        {"boxes": box.to(setting.device), "labels": label.to(setting.device) + 1} for box, label in zip(*objects(BATCH))
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def job() -> None:
        optimizer.zero_grad()
        torch.stack(list(model([image / 255 for image in images], targets).values())).sum().backward()
        optimizer.step()

    return job


DETECT = (
    against_torchvision("ssd300_vgg16, 1 image", partial(detect_detkit, 1), partial(detect_torchvision, 1)),
    against_torchvision("ssd300_vgg16, 8 images", partial(detect_detkit, 8), partial(detect_torchvision, 8)),
)
TRAIN = (against_torchvision(f"ssd300_vgg16, training step of {BATCH}", train_detkit, train_torchvision),)
