"""Detectors beside torchvision's: from uint8 pixels to detections, and one step of training.

SSD300-VGG16 beside `ssd300_vgg16`, and, of equal weights, Faster R-CNN with ResNet-50 and FPN beside
`fasterrcnn_resnet50_fpn`, whose norms are frozen, as torchvision has them for trained weights. detkit runs as its
commands run it. torchvision runs as its documentation has it; and once more with detkit's memory settings, which shows
how much of the difference is due to them.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, ssd300_vgg16
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from detkit.checkpoints import checkpoint
from detkit.checkpoints.torchvision_files import from_state
from detkit.config import BackboneConfig, DetectConfig
from detkit.inference.fast import Fast
from detkit.models import DenseDetector, Detector, build_detector, postprocess
from detkit.models.ssd import SSDConfig
from detkit.runtime.device import autocast, images_to_device, resolve_amp, to_device
from detkit.runtime.race import Benchmark, Job, Runner, Setting, against_torchvision
from detkit.structures import Images, Targets

CLASSES = 20
# torchvision's untrained Faster R-CNN has layers scaled to give scores and boxes that are spread as trained ones are;
# else NMS would have nothing to do
SPREAD = {"rpn.head.cls_logits": 2.0, "rpn.head.bbox_pred": 0.3, "cls_score": 2.0, "box_predictor.bbox_pred": 1.0}


@dataclass(frozen=True)
class Network:
    """A detector, how detkit and torchvision build it, and what it is fed.

    size: of the images, height and width. objects: in each image. lr, weight_decay: of training.
    """

    build: Callable[[], tuple[Detector, DetectConfig]]
    build_torchvision: Callable[[], nn.Module]
    size: tuple[int, int]
    objects: int
    lr: float
    weight_decay: float

    def pixels(self, batch: int, device: str) -> Tensor:
        """Return (batch, 3, height, width) uint8 noise, smooth enough to look like images to a network."""
        coarse = torch.rand(batch, 3, 30, 30 * self.size[1] // self.size[0], generator=torch.Generator().manual_seed(0))
        return (nn.functional.interpolate(coarse, self.size, mode="bilinear") * 255).to(torch.uint8).to(device)

    def targets(self, batch: int, device: str) -> Targets:
        """Return random objects."""
        generator = torch.Generator().manual_seed(1)
        corner = torch.rand(batch, self.objects, 2, generator=generator) * self.size[0] / 2
        sides = 20 + torch.rand(batch, self.objects, 2, generator=generator) * self.size[0] / 3
        labels = torch.randint(CLASSES, (batch, self.objects), generator=generator)
        boxes = torch.cat((corner, corner + sides), -1)
        return Targets(boxes, labels, torch.zeros_like(labels, dtype=torch.bool)).to(device)


def build_ssd() -> tuple[Detector, DetectConfig]:
    return build_detector(SSDConfig(), tuple(f"class{i}" for i in range(CLASSES))), DetectConfig()


def build_torchvision_ssd() -> nn.Module:
    return ssd300_vgg16(weights=None, weights_backbone=None, num_classes=CLASSES + 1)


def build_faster_rcnn() -> tuple[Detector, DetectConfig]:
    content = from_state(build_torchvision_faster_rcnn().state_dict(), "torchvision")
    detector, config = checkpoint.build(content, "torchvision")
    return detector, config.detect


def build_torchvision_faster_rcnn() -> nn.Module:
    """The same weights in every process."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    model = FasterRCNN(backbone, num_classes=CLASSES + 1, min_size=FASTER_RCNN.size[0])
    hooks = [
        layer.register_forward_hook(_spread(std))
        for name, layer in model.named_modules()
        for ending, std in SPREAD.items()
        if name.endswith(ending)
    ]
    with torch.inference_mode(False), torch.no_grad():
        model.eval()([FASTER_RCNN.pixels(1, "cpu")[0] / 255])
    for hook in hooks:
        hook.remove()
    return model


def _spread(std: float):
    def scale(layer: nn.Module, _: object, result: Tensor) -> Tensor:
        factor = std / result.std()
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        layer.weight *= factor
        return result * factor

    return scale


SSD = Network(build_ssd, build_torchvision_ssd, (300, 300), 3, 1e-4, 5e-4)
FASTER_RCNN = Network(build_faster_rcnn, build_torchvision_faster_rcnn, (600, 800), 6, 1e-6, 1e-4)


def detection(detector: Detector, images: Images, settings: DetectConfig, device: str, amp: str = "none") -> Job:
    """Return the job from pixels to detections, as detkit's commands do it."""
    to_device(detector.eval(), torch.device(device), channels_last=True)
    images = images_to_device(images, torch.device(device), channels_last=True)
    fast = Fast(detector)

    @torch.inference_mode()
    def job() -> object:
        with fast.running(amp):
            with autocast(images.pixels.device, amp):
                predictions = detector.predict(images)
            return postprocess(predictions, images, settings)

    return job


def network_alone(batch: int, how: str, amp: str, setting: Setting) -> Job:
    """Return the job of SSD300 on MobileNetV2 without decoding: as detection runs it, as torch does, or compiled."""
    device = torch.device(setting.device)
    config = SSDConfig(backbone=BackboneConfig("mobilenet_v2"))
    detector = build_detector(config, tuple(f"class{i}" for i in range(CLASSES))).eval()
    to_device(detector, device, channels_last=True)
    pixels = SSD.pixels(batch, setting.device).float().contiguous(memory_format=torch.channels_last)
    assert isinstance(detector, DenseDetector)
    network = torch.compile(detector.network, options={"freezing": True}) if how == "compile" else detector.network
    fast = Fast(detector)

    @torch.inference_mode()
    def job() -> object:
        with fast.running(amp) if how == "detkit" else nullcontext(), autocast(device, amp):
            return network(detector.normalise(pixels))

    return job


def training(losses: Callable[[], dict[str, Tensor]], model: nn.Module, network: Network, fused: bool) -> Job:
    """Return the job of one step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, network.lr, 0.9, weight_decay=network.weight_decay, fused=fused)

    def job() -> None:
        optimizer.zero_grad()
        torch.stack(list(losses().values())).sum().backward()
        optimizer.step()

    return job


def whole_images(pixels: Tensor) -> Images:
    """Return a batch without padding."""
    sizes = torch.tensor([pixels.shape[-2:]] * len(pixels))
    return Images(pixels, sizes, sizes, tuple(map(str, range(len(pixels)))))


def detect_detkit(network: Network, batch: int, amp: str, setting: Setting) -> Job:
    detector, settings = network.build()
    return detection(detector, whole_images(network.pixels(batch, "cpu")), settings, setting.device, amp)


def detect_torchvision(network: Network, batch: int, amp: str, setting: Setting) -> Job:
    model = network.build_torchvision().eval().to(setting.device)
    pixels = network.pixels(batch, setting.device)

    @torch.inference_mode()
    def job() -> object:
        with autocast(torch.device(setting.device), amp):
            return model([image / 255 for image in pixels])

    return job


def train_detkit(network: Network, batch: int, setting: Setting) -> Job:
    device = torch.device(setting.device)
    detector, _ = network.build()
    to_device(detector.train(), device, channels_last=True)
    images = images_to_device(whole_images(network.pixels(batch, "cpu")), device, channels_last=True)
    targets = network.targets(batch, setting.device)
    return training(lambda: detector(images, targets), detector, network, fused=True)


def train_torchvision(network: Network, batch: int, setting: Setting) -> Job:
    model = network.build_torchvision().train().to(setting.device)
    pixels, objects = network.pixels(batch, setting.device), network.targets(batch, setting.device)
    targets = [{"boxes": boxes, "labels": labels + 1} for boxes, labels in zip(objects.boxes, objects.labels)]
    return training(lambda: model([image / 255 for image in pixels], targets), model, network, fused=False)


# what the names of lines end with, and the number format: bfloat16, too, where the processor multiplies it
FORMATS = {"": "none"} | ({", bf16": "bf16"} if resolve_amp(torch.device("cpu"), "auto") == "bf16" else {})
NETWORK = tuple(
    Benchmark(
        f"SSD300 on MobileNetV2, network alone, {batch} image{'s' * (batch > 1)}{end}",
        tuple(
            Runner(name, partial(network_alone, batch, how, amp), True)
            for name, how in (("detkit", "detkit"), ("torch, layer by layer", ""), ("torch.compile, frozen", "compile"))
        ),
    )
    for end, amp in FORMATS.items()
    for batch in (1, 8)
)
DETECT = NETWORK + tuple(
    against_torchvision(
        f"{name}{end}", partial(detect_detkit, network, batch, amp), partial(detect_torchvision, network, batch, amp)
    )
    for end, amp in FORMATS.items()
    for name, network, batch in (
        ("ssd300_vgg16, 1 image", SSD, 1),
        ("ssd300_vgg16, 8 images", SSD, 8),
        ("fasterrcnn_resnet50_fpn, 1 image", FASTER_RCNN, 1),
    )
)
TRAIN = tuple(
    against_torchvision(name, partial(train_detkit, network, batch), partial(train_torchvision, network, batch))
    for name, network, batch in (
        ("ssd300_vgg16, training step of 4", SSD, 4),
        ("fasterrcnn_resnet50_fpn, training step", FASTER_RCNN, 1),
    )
)
