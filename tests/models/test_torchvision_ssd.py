"""The peer gives what torchvision's own SSD gives."""

import torch

from detkit.config import BackboneConfig, DetectConfig
from detkit.models import build_detector, postprocess
from detkit.models.torchvision_ssd import TorchvisionSSD, TorchvisionSSDConfig
from detkit.structures import Targets
from tests.builders import images_of, random_image
from tests.matching import assert_same_detections


def peer() -> TorchvisionSSD:
    detector = build_detector(TorchvisionSSDConfig(backbone=BackboneConfig("tiny"), size=300), ("a", "b"))
    assert isinstance(detector, TorchvisionSSD)
    return detector


def test_losses_are_those_of_its_own_forward():
    detector = peer()
    # its transform keeps the size and normalises as detkit does
    detector.ssd.transform.fixed_size = (300, 300)
    pixels = random_image(300, 300)
    box = torch.tensor([[[20.0, 30, 100, 120], [5, 5, 60, 40], [0, 0, 0, 0]]])
    targets = Targets(box, torch.tensor([[1, 0, -1]]), torch.zeros(1, 3, dtype=torch.bool))
    detector.train()
    for module in detector.modules():  # a second pass must see the same statistics
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    ours = detector.losses(images_of(pixels), targets)
    theirs = detector.ssd([pixels[0] / 255], [{"boxes": box[0, :2], "labels": torch.tensor([2, 1])}])
    torch.testing.assert_close(ours["classification"], theirs["classification"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours["box"], theirs["bbox_regression"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_detections_are_those_of_its_own_forward():
    detector = peer().eval()
    for layer in detector.ssd.head.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.normal_(layer.weight, std=0.1)  # spread the scores, as training does
    pixels = random_image(300, 300)
    images = images_of(pixels)
    settings = DetectConfig(
        score_threshold=detector.ssd.score_thresh, top_k=400, nms_iou=0.45, detections_per_image=200
    )
    found = postprocess(detector.predict(images), images, settings)[0].image(0)
    theirs = detector.ssd([pixels[0] / 255])[0]
    expected = (theirs["boxes"], theirs["scores"], theirs["labels"] - 1)
    assert len(found[2]) > 20
    assert_same_detections(
        found, expected, score=settings.score_threshold, iou=settings.nms_iou, keep=settings.detections_per_image
    )


def test_an_image_without_objects_is_finite():
    detector = peer()
    none = Targets(torch.zeros(1, 1, 4), torch.full((1, 1), -1), torch.zeros(1, 1, dtype=torch.bool))
    assert all(loss.isfinite() for loss in detector.losses(images_of(random_image(300, 300)), none).values())
