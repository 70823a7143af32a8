"""torchvision's detectors in detkit's own: at equal weights they find, lose and learn the same."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2, ssd300_vgg16
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.misc import FrozenBatchNorm2d

from detkit.config import DetectConfig
from detkit.engine import checkpoint
from detkit.models import Detector, postprocess
from detkit.models.faster_rcnn import FasterRCNN
from detkit.models.torchvision_files import NO_CLASS, from_state, is_state
from detkit.structures import Images, Targets
from tests.builders import images_of, photo

HEIGHT, WIDTH = 192, 240  # the first a multiple of 32, the second not


@torch.no_grad()
def lively(model: nn.Module, seed: int = 0) -> None:
    """Move an untrained Faster R-CNN's norms, and spread its scores and boxes, as training does."""
    random = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
        elif name.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.05)
    images, maps = their_maps(model.eval(), photo(HEIGHT, WIDTH))
    logits, deltas = model.rpn.head(list(maps.values()))
    spread(model.rpn.head.cls_logits, torch.cat([x.flatten() for x in logits]), 2.0)
    spread(model.rpn.head.bbox_pred, torch.cat([x.flatten() for x in deltas]), 0.3)
    boxes, _ = model.rpn(images, maps)
    heads = model.roi_heads
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, boxes, images.image_sizes)))
    spread(heads.box_predictor.cls_score, logits, 2.0)
    spread(heads.box_predictor.bbox_pred, deltas, 1.0)


def spread(layer: nn.Module, results: Tensor, wanted: float) -> None:
    """Scale a layer so that its results have a standard deviation of `wanted` about 0."""
    layer.weight *= wanted / results.std()
    layer.bias -= results.mean() * wanted / results.std()


def converted(theirs: nn.Module, *overrides: str) -> Detector:
    """The detector that detkit makes of a file of these weights."""
    published = from_state(theirs.state_dict(), "test")
    content = {"config": checkpoint.to_plain(published.config), "classes": published.classes}
    return checkpoint.build(content | {"model": published.weights}, "test", list(overrides))[0]


@pytest.fixture(scope="module", params=[fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2])
def pair(request) -> tuple[nn.Module, FasterRCNN]:
    torch.manual_seed(0)
    keys = {"rpn_pre_nms_top_n_test": 300, "rpn_post_nms_top_n_test": 60, "min_size": HEIGHT}
    theirs = request.param(weights=None, weights_backbone=None, num_classes=6, **keys)
    lively(theirs)
    ours = converted(theirs, "model.test_before=300", "model.test_after=60", "model.size=[192,1333]").eval()
    assert isinstance(ours, FasterRCNN)
    return theirs, ours


def their_maps(theirs: nn.Module, pixels: Tensor) -> tuple[ImageList, dict[str, Tensor]]:
    images, _ = theirs.transform(list(pixels / 255))  # pyright: ignore[reportCallIssue]
    return images, theirs.backbone(images.tensors)  # pyright: ignore[reportCallIssue]


def near(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to the order of sums."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@torch.no_grad()
def test_proposals_equal_torchvision(pair):
    theirs, ours = pair
    pixels = torch.cat([photo(HEIGHT, WIDTH, seed) for seed in range(2)])
    images, maps = their_maps(theirs, pixels)
    our_maps = ours.maps(images_of(pixels))
    for one, other in zip(our_maps, maps.values(), strict=True):
        near(one, other)
    logits, deltas = ours.rpn(our_maps)
    their_logits, their_deltas = theirs.rpn.head(list(maps.values()))
    for one, other in zip(logits, their_logits, strict=True):
        near(one, other.permute(0, 2, 3, 1).flatten(1))
    for one, other in zip(deltas, their_deltas, strict=True):
        near(one, other.permute(0, 2, 3, 1).reshape(one.shape))
    anchors = theirs.rpn.anchor_generator(images, list(maps.values()))[0]
    assert torch.equal(torch.cat(ours.anchors(our_maps)), anchors)
    wanted, _ = theirs.rpn(images, maps)
    found = ours.proposals(images_of(pixels), logits, deltas, ours.anchors(our_maps))
    for row, boxes in enumerate(wanted):
        assert found.valid[row].sum() == len(boxes) == 60
        torch.testing.assert_close(found.boxes[row], boxes, rtol=1e-3, atol=0.05)


@torch.no_grad()
def test_regions_equal_torchvision(pair):
    """Logits and deltas of the same proposals."""
    theirs, ours = pair
    pixels = photo(HEIGHT, WIDTH)
    images, maps = their_maps(theirs, pixels)
    boxes, _ = theirs.rpn(images, maps)
    heads = theirs.roi_heads
    wanted, shifts = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, boxes, images.image_sizes)))
    logits, deltas = ours.regions(ours.maps(images_of(pixels)), torch.stack(boxes))
    near(logits[0], torch.cat((wanted[:, 1:], wanted[:, :1]), 1))
    near(deltas[0], shifts.view(len(shifts), -1, 4)[:, 1:])


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 3])
def test_detections_equal_torchvision(pair, seed):
    theirs, ours = pair
    pixels = photo(HEIGHT, WIDTH, seed)
    expected = theirs([pixels[0] / 255])[0]
    settings = DetectConfig(score=0.05, top_k=1000, iou=0.5, keep=100)
    images = images_of(pixels)
    boxes, scores, labels = postprocess(ours.predict(images), images, settings).image(0)
    assert len(labels) == len(expected["labels"]) > 20
    assert len(labels.unique()) > 2
    torch.testing.assert_close(scores, expected["scores"], rtol=1e-3, atol=1e-4)
    # nearly equal scores may change places between two roundings
    order, wanted = [
        sorted(range(len(x)), key=lambda row: (x[row].item(), *box[row].round().tolist()))
        for x, box in ((labels + 1, boxes), (expected["labels"], expected["boxes"]))
    ]
    assert (labels + 1)[order].tolist() == expected["labels"][wanted].tolist()
    torch.testing.assert_close(boxes[order], expected["boxes"][wanted], rtol=1e-3, atol=0.05)
