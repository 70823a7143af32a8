"""Faster R-CNN with ResNet-50 and FPN beside torchvision's `fasterrcnn_resnet50_fpn`: equal weights, one image.

torchvision's norms are frozen, as it has them for trained weights. Nothing is trained here, so layers are scaled to
give scores and boxes that are spread as trained ones are; else NMS would have nothing to do.
"""

import torch
from torch import Tensor, nn

from detkit.checkpoints import checkpoint
from detkit.checkpoints.torchvision_files import from_state
from detkit.models import postprocess
from detkit.runtime.device import images_to_device, to_device
from detkit.runtime.race import Job, Setting, against_torchvision
from detkit.structures import Images, Targets

SIZE, CLASSES = (600, 800), 20
SPREAD = {"rpn.head.cls_logits": 2.0, "rpn.head.bbox_pred": 0.3, "cls_score": 2.0, "box_predictor.bbox_pred": 1.0}


def torchvision_model(setting: Setting) -> nn.Module:
    """The same weights in every process."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    model = FasterRCNN(backbone, num_classes=CLASSES + 1, min_size=SIZE[0])
    hooks = [
        layer.register_forward_hook(_spread(std))
        for name, layer in model.named_modules()
        for ending, std in SPREAD.items()
        if name.endswith(ending)
    ]
    with torch.inference_mode(False), torch.no_grad():
        model.eval()([random_image()])
    for hook in hooks:
        hook.remove()
    return model.to(setting.device)


def _spread(std: float):
    def scale(layer: nn.Module, _: object, result: Tensor) -> Tensor:
        factor = std / result.std()
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        layer.weight *= factor
        return result * factor

    return scale


def random_image() -> Tensor:
    """Return (3, height, width) in [0, 1]: noise, smooth enough to look like an image to a network."""
    coarse = torch.rand(1, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, SIZE, mode="bilinear")[0]


def objects() -> tuple[Tensor, Tensor]:
    """Return boxes (6, 4) and labels (6,)."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(6, 2, generator=generator) * SIZE[0] / 2
    boxes = torch.cat((corner, corner + 40 + torch.rand(6, 2, generator=generator) * 200), -1)
    return boxes, torch.randint(CLASSES, (6,), generator=generator)


def detkit_model(setting: Setting):

    content = from_state(torchvision_model(setting).state_dict(), "torchvision")
    detector, config = checkpoint.build(content, "torchvision")
    to_device(detector, torch.device(setting.device), channels_last=True)
    return detector, config


def detkit_images(setting: Setting):

    sizes = torch.tensor([SIZE])
    pixels = (random_image() * 255).round().to(torch.uint8)[None]
    return images_to_device(Images(pixels, sizes, sizes, ("0",)), torch.device(setting.device), channels_last=True)


def detect_detkit(setting: Setting) -> Job:

    (detector, config), images = detkit_model(setting), detkit_images(setting)
    detector.eval()

    @torch.inference_mode()
    def job() -> object:
        return postprocess(detector.predict(images), images, config.detect)

    return job


def detect_torchvision(setting: Setting) -> Job:
    model, pixels = torchvision_model(setting).eval(), detkit_images(setting).pixels[0]

    @torch.inference_mode()
    def job() -> object:
        return model([pixels / 255])

    return job


def train_detkit(setting: Setting) -> Job:

    (detector, _), images = detkit_model(setting), detkit_images(setting)
    detector.train()
    boxes, labels = (tensor.unsqueeze(0) for tensor in objects())
    targets = Targets(boxes, labels, torch.zeros_like(labels, dtype=torch.bool)).to(setting.device)
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4, fused=True)

    def job() -> None:
        optimizer.zero_grad()
        torch.stack(list(detector(images, targets).values())).sum().backward()
        optimizer.step()

    return job


def train_torchvision(setting: Setting) -> Job:
    model, pixels = torchvision_model(setting).train(), detkit_images(setting).pixels[0]
    boxes, labels = objects()
    targets = [{"boxes": boxes.to(setting.device), "labels": labels.to(setting.device) + 1}]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def job() -> None:
        optimizer.zero_grad()
        torch.stack(list(model([pixels / 255], targets).values())).sum().backward()
        optimizer.step()

    return job


DETECT = (against_torchvision("fasterrcnn_resnet50_fpn, 1 image", detect_detkit, detect_torchvision),)
TRAIN = (against_torchvision("fasterrcnn_resnet50_fpn, training step", train_detkit, train_torchvision),)
