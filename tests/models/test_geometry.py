"""Regions are pooled from, and anchors laid over, where the cells of a backbone's map really lie."""

import pytest
import torch
from torch import Tensor

from detkit.config import BackboneConfig
from detkit.models import build_detector
from detkit.models.fast_rcnn import FastRCNN, FastRCNNConfig
from detkit.models.faster_rcnn import FasterRCNN
from detkit.ops import box_iou
from tests import zoo
from tests.builders import tiny_faster_rcnn_config

CELLS = 60  # of a map's side


def fast_rcnn(backbone: str, **keys: object) -> FastRCNN:
    """Return one without weights on the backbone."""
    size = 6 if backbone in ("alexnet", "zfnet") else 7
    with torch.device("meta"):
        detector = build_detector(FastRCNNConfig(backbone=BackboneConfig(backbone), pool_size=size, **keys), ("a",))
    assert isinstance(detector, FastRCNN)
    return detector


def objects(count: int = 400) -> Tensor:
    """Return boxes (1, count, 4) as large as VOC's objects are at 600 pixels, from 30 to 350 a side."""
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(1, count, 2, generator=generator) * 250
    return torch.cat((low, low + 30 * 12 ** torch.rand(1, count, 2, generator=generator)), -1)


def places(detector: FastRCNN) -> Tensor:
    """Return a map (1, 2, rows, columns) whose cells say where they are seen, x and y in pixels of the input."""
    middles = detector.backbone.first_cell_centre + detector.features.pooling.stride * torch.arange(CELLS)
    return torch.stack((middles.expand(CELLS, CELLS), middles.unsqueeze(1).expand(CELLS, CELLS))).unsqueeze(0)


def area_iou(detector: FastRCNN) -> float:
    """Return the mean IoU of objects with the area whose cells are pooled of them."""
    boxes, x, half = objects(), places(detector), detector.features.pooling.stride / 2
    low, high = -detector.features.pool([-x], boxes).amax((-1, -2)), detector.features.pool([x], boxes).amax((-1, -2))
    return float(box_iou(torch.cat((low - half, high + half), -1).transpose(0, 1), boxes.transpose(0, 1)).mean())


@pytest.mark.parametrize(
    ("backbone", "published"), [("alexnet", 0.53), ("squeezenet1_1", 0.53), ("vgg16", 0.66), ("zfnet", 0.72)]
)
def test_the_pooled_area_is_the_objects(backbone: str, published: float) -> None:
    """As published RoI pooling takes the first cell of all networks for one around .5, as Caffe's AlexNet has it."""
    assert area_iou(fast_rcnn(backbone, freeze_stages=0)) == pytest.approx(0.717, abs=0.006)
    assert area_iou(fast_rcnn(backbone, freeze_stages=0, geometry="published")) == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("pool", ["align", "align_v1"])
@pytest.mark.parametrize("backbone", ["alexnet", "vgg16", "zfnet", "efficientnet_lite0"])
def test_what_is_interpolated_is_what_lies_there(backbone: str, pool: str) -> None:
    """The mean of all samples in a region is then the region's middle."""
    detector, boxes = fast_rcnn(backbone, pool=pool, freeze_stages=0), objects() + 100
    seen = detector.features.pool([places(detector)], boxes).mean((-1, -2))
    torch.testing.assert_close(seen, (boxes[..., :2] + boxes[..., 2:]) / 2, atol=1e-3, rtol=0)


def test_each_scale_of_a_pyramid_is_pooled_where_it_lies() -> None:
    plain, pyramid = fast_rcnn("alexnet", pool="align"), fast_rcnn("alexnet", pool="align", scales=[480])
    boxes, x = objects(), places(plain)
    prepared = type("Prepared", (), {"maps": [(x, torch.tensor([0.5]))]})
    assert torch.equal(pyramid.features.pool(prepared, boxes * 2), plain.features.pool([x], boxes))


@pytest.mark.parametrize("backbone", ["vgg16", "zfnet", "alexnet"])
@pytest.mark.parametrize("geometry", ["backbone", "published"])
def test_anchors_lie_around_their_cells(backbone: str, geometry: str) -> None:
    """As published around 8, which is right for VGG16 alone."""
    size = 7 if backbone == "vgg16" else 6
    config = tiny_faster_rcnn_config(
        backbone=BackboneConfig(backbone), pool_size=size, freeze_stages=0, geometry=geometry
    )
    detector = build_detector(config, ("a",))
    assert isinstance(detector, FasterRCNN)
    (anchors,) = detector.rpn.anchors([(3, 4)])
    centres = ((anchors[:, :2] + anchors[:, 2:]) / 2).view(3, 4, -1, 2)
    first = detector.backbone.first_cell_centre if geometry == "backbone" else 8.0
    x, y = first + torch.arange(4) * 16.0, first + torch.arange(3) * 16.0
    expected = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).unsqueeze(2).expand_as(centres)
    torch.testing.assert_close(centres, expected)


def test_above_a_neck_all_is_as_published() -> None:
    keys = {"neck": "fpn", "channels": 8, "pool": "align"}
    one, other = (zoo.build("faster_rcnn", geometry=geometry, **keys) for geometry in ("backbone", "published"))
    sides = [(8 >> level, 8 >> level) for level in range(4)]
    for anchors, expected in zip(one.rpn.anchors(sides), other.rpn.anchors(sides)):
        assert torch.equal(anchors, expected)
    assert one.features.facts() == other.features.facts()
