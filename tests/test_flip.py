"""A mirrored image has the mirrored detections, by a network that is its own mirror image.

What must be so for it: kernels that are symmetric from left to right, those of horizontal deltas antisymmetric; layers
whose windows lie symmetrically in an image; anchors, regions and cells that do, too. Then scores are equal and boxes
mirrored, whatever the weights, and a cell or an anchor half a stride off shows at once.

Backbones: those whose strided layers halve an even side into equal windows, 2x2 pools. The 3x3 windows of stride 2 of
the others (ResNet's, MobileNet's, tiny's) begin at the left border of an even side and end before the right one: cell
i has its middle at .5 + i * stride, see Backbone.first_cell_centre, which is not its mirror image's.
Left out for the same reason: SSD's added layers of 3x3 and stride 2 on an even side (odd sides and 4x4 are taken), and
FPN, whose coarsest map is every second cell of the one before, RetinaNet, whose two coarsest maps are, and R-FCN, which
has other maps for left than for right. And
YOLOv2's passthrough layer, whose channels tell left from right.
Two detectors mirror boxes about another axis, x -> width - 1 - x, since the authors' codes count pixels or cells with
both ends included: R-CNN's crops, and RoI pooling. No one axis does for Faster R-CNN with RoI pooling, whose anchors
have that of the image.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detkit.config import DetectConfig
from detkit.models import Detector, postprocess
from detkit.models.region import RegionDetector
from detkit.models.svm_detector import SVMHead
from detkit.structures import Images, Predictions, Proposals
from tests import zoo
from tests.builders import random_image
from tests.matching import Found, assert_same_detections

BACKBONES = ("darknet_yolov1_tiny", "darknet19", "vgg11", "vgg16_reduced")
HEIGHT, WIDTH = 128, 192
KEYS: dict[str, dict[str, Any]] = {
    "fast_rcnn": {"size": [HEIGHT, WIDTH], "pool": "align"},
    "fast_rcnn pool": {"size": [HEIGHT, WIDTH], "pool": "pool"},
    # all anchors are proposals, since rounding would decide of some
    "faster_rcnn": {
        "size": [HEIGHT, WIDTH],
        "pool": "align",
        "scales": [2.0, 4.0],
        "min_size": 0.0,
        "rpn_nms_iou": 1.0,
        "test_pre_nms_top_n": 10_000,
        "test_post_nms_top_n": 10_000,
    },
    "rcnn": {"crop": 64, "context": 4},
    "sppnet": {"scales": [HEIGHT], "pyramid": [3, 2, 1]},
    "ssd": {"size": 128, "extras": [[16, 32, 4, 2, 1]]},
    "torchvision_ssd": {},
    "yolov1": {"size": 128, "hidden": []},
    "yolov2": {"size": 128, "passthrough": 0},
    "yolov3": {"size": WIDTH},
}
# sides from which torchvision's added layers see odd ones
ODD = {"darknet_yolov1_tiny": 320, "darknet19": 288, "vgg11": 272, "vgg16_reduced": 272}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backbone" in metafunc.fixturenames:
        metafunc.parametrize("backbone", BACKBONES if metafunc.config.getoption("--full") else BACKBONES[:1])


def mirrored_map(channels: int, *sides: int) -> Tensor:
    """Where the mirror image of each feature is: of flattened (channels, side, side), or a pyramid of such maps."""
    bins = sum(side**2 for side in sides)
    places = torch.arange(channels * bins).view(channels, bins).split([side**2 for side in sides], 1)
    return torch.cat(
        [part.unflatten(1, (side, side)).flip(-1).flatten(1) for side, part in zip(sides, places)], 1
    ).flatten()


def mirrored_cells(rows: int, each: int) -> Tensor:
    """Where the mirror image of each of (rows * rows * each) values is, cell by cell."""
    return torch.arange(rows * rows * each).view(rows, rows, each).flip(1).flatten()


def fold(layer: Any, mirror: Tensor | None = None, horizontal: bool = False) -> None:
    """Make a layer its own mirror image; its outputs 0, 4, 8, ... the negative of it where they are horizontal shifts.

    mirror: of the features that a fully connected layer reads, None where these have no sides.
    """
    weight = layer.weight.data
    other = weight.flip(-1) if weight.ndim == 4 else weight if mirror is None else weight[:, mirror]
    weight.add_(other).div_(2)
    if horizontal:
        weight[::4] -= other[::4]
        layer.bias.data[::4] = 0


def liven(layer: Any) -> None:
    """Let a layer's outputs be as varied as what it reads."""
    nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    nn.init.normal_(layer.bias, std=0.3)


@torch.no_grad()
def symmetrise(model: str, detector: Any) -> None:
    """Make a detector its own mirror image, with scores and boxes that vary."""
    boxes: list[nn.Module] = []
    if model == "ssd":
        boxes = [*detector.head.regressors]
        [liven(layer) for layer in (*boxes, *detector.head.classifiers)]
    if model == "torchvision_ssd":
        heads = detector.ssd.head
        boxes = [*heads.regression_head.module_list]
        [liven(layer) for layer in (*boxes, *heads.classification_head.module_list)]
    if model == "faster_rcnn":
        boxes = [detector.rpn.deltas]
        [liven(layer) for layer in (*boxes, detector.rpn.objectness)]
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            fold(module, horizontal=module in boxes)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # pyright: ignore
            nn.init.normal_(module.running_mean, std=0.1)  # pyright: ignore
    if model == "yolov2":  # a 1x1 convolution of mirrored features has no horizontal shifts
        liven(detector.head)
        outputs = detector.head.out_channels // len(detector.anchors)
        detector.head.weight[::outputs] = 0
        detector.head.bias[::outputs] = 0
    if model == "yolov3":
        for scale, count in zip(detector.scales, detector.counts):
            liven(scale.head)
            outputs = scale.head.out_channels // count
            scale.head.weight[::outputs] = 0
            scale.head.bias[::outputs] = 0
    if model == "yolov1":
        last, side, parts = detector.head.last, detector.grid, detector.parts
        liven(last)
        counts = [side**2 * part for part in parts]
        cells = [mirrored_cells(side, part) for part in parts]
        outputs = torch.cat([cells[0], cells[1] + counts[0], cells[2] + counts[0] + counts[1]])
        shift = torch.zeros(len(outputs), dtype=torch.bool)
        shift[sum(counts[:2]) :: 4] = True
        sign = torch.where(shift, -1, 1)  # x of a cell becomes 1 - x
        channels = last.in_features // side**2
        other = last.weight[outputs][:, mirrored_map(channels, side)]
        last.weight.copy_((last.weight + sign.unsqueeze(1) * other) / 2)
        last.bias.copy_((last.bias + sign * last.bias[outputs] + shift) / 2)
    if isinstance(detector, RegionDetector):
        head, bins = detector.head, detector.features.shape[1:]
        sides = [level.shape[-1] for level in detector.features.squares(torch.zeros(1, *bins))]
        count = math.prod(bins)
        first = next((layer for layer in head.tail.modules() if isinstance(layer, nn.Linear)), None)
        if first is not None:
            fold(first, mirrored_map(first.in_features // count, *sides))
        liven(head.classifier)
        liven(head.regressor)
        fitted = isinstance(head, SVMHead)  # whose regression reads the pooled features
        pooled = mirrored_map(head.regressor.in_features // count, *sides) if fitted else None
        fold(head.regressor, pooled, horizontal=True)
        if fitted:
            liven(head.svm)
            head.regressor.weight.mul_(0.3)
            head.svm_fitted.fill_(True)


def mirror(boxes: Tensor, width: int) -> Tensor:
    """Boxes (..., 4) of the mirrored image."""
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack((width - right, top, width - left, bottom), -1)


def flat(predictions: Predictions, row: int) -> Found:
    """All boxes of an image, each with its score for each class; without padding."""
    scores = predictions.scores[row].flatten()
    labels = torch.arange(predictions.scores.shape[2]).repeat(predictions.scores.shape[1])
    valid = scores > -torch.inf
    return predictions.boxes[row].flatten(0, 1)[valid], scores[valid], labels[valid]


def order(model: str, detector: Any, pixels: Tensor) -> Tensor | slice:
    """Where a mirrored image's predictions stand of what the image's are, box by box."""
    if model == "yolov1":
        return mirrored_cells(detector.grid, detector.config.boxes)
    if model == "yolov2":
        rows, _ = detector.network(pixels).sides
        return mirrored_cells(rows, len(detector.anchors))
    if model == "yolov3":
        places, first = [], 0
        for (rows, _), count in zip(detector.network(pixels).sides, detector.counts):
            places.append(first + mirrored_cells(rows, count))
            first += len(places[-1])
        return torch.cat(places)
    if model == "ssd":
        regressors = detector.head.regressors
    elif model == "torchvision_ssd":
        regressors = detector.ssd.head.regression_head.module_list
    else:  # regions come with the images, or the best first
        return slice(None)
    maps = detector.feature_maps(pixels)
    places, first = [], 0
    for x, layer in zip(maps, regressors):
        places.append(first + mirrored_cells(x.shape[-1], layer.out_channels // 4))
        first += len(places[-1])
    return torch.cat(places)


@torch.no_grad()
@pytest.mark.parametrize("case", KEYS)
def test_mirrored_images_have_mirrored_detections(case: str, backbone: str) -> None:
    model = case.split()[0]
    keys = dict(KEYS[case])
    if model == "torchvision_ssd":
        keys["size"] = ODD[backbone]
    detector: Any = zoo.build(model, backbone, **keys).eval()
    symmetrise(model, detector)
    height, width = detector.input.size if detector.input.resize == "stretch" else (HEIGHT, WIDTH)
    pixels = torch.cat([random_image(height, width, seed) for seed in range(2)])
    sizes = torch.tensor([[height, width]] * 2)
    regions = torch.stack([zoo.regions(40, height, width, seed) for seed in range(2)])
    axis = width - {"rcnn": 1, "fast_rcnn pool": 1}.get(case, 0)
    one, other = [
        Images(x, sizes, sizes, ("0", "1"), Proposals.pad(list(boxes)) if detector.takes_proposals else None)
        for x, boxes in ((pixels, regions), (pixels.flip(-1), mirror(regions, axis)))
    ]
    found, again = detector.predict(one), detector.predict(other)
    canvas = detector.lay(one.pixels, sizes, width)[0] if model == "yolov3" else detector.normalise(one.pixels)
    places = order(model, detector, canvas)
    expected = Predictions(mirror(found.boxes, axis)[:, places], found.scores[:, places])
    spread = float(found.scores[found.scores > -torch.inf].std())
    assert spread > 1e-4
    if model == "faster_rcnn":  # proposals of nearly equal scores may change places
        for row in range(2):
            every = [flat(x, row) for x in (again, expected)]
            count = len(every[0][2])
            assert count > 100
            assert_same_detections(*every, score=-1, iou=None, keep=count, score_atol=0.01 * spread)
    else:
        torch.testing.assert_close(again.scores, expected.scores, rtol=1e-3, atol=0.01 * spread)
        torch.testing.assert_close(again.boxes, expected.boxes, rtol=1e-3, atol=0.05)
    if axis == width:
        settings = DetectConfig(
            score_threshold=1e-3 if case == "yolov1" else -1e9, detections_per_image=20
        )  # YOLO's scores below 0 are 0 alike
        detections, _ = postprocess(found, one, settings)
        mirrored, _ = postprocess(again, other, settings)
        for row in range(2):
            boxes, scores, labels = detections.image(row)
            mirrored_back = (mirror(boxes, width), scores, labels)
            assert len(labels) >= 2
            assert_same_detections(
                mirrored.image(row),
                mirrored_back,
                score=settings.score_threshold,
                iou=settings.nms_iou,
                keep=20,
                score_atol=0.01 * spread,
            )


def test_every_model_is_mirrored() -> None:
    # Mask R-CNN's boxes are Faster R-CNN's
    assert {case.split()[0] for case in KEYS} == set(zoo.MODELS) - {"retinanet", "rfcn", "mask_rcnn"}


def test_a_network_that_is_no_mirror_image_is_noticed() -> None:
    """The weights alone make it so: without them nothing is equal."""
    detector: Detector = zoo.build("ssd", BACKBONES[0], **KEYS["ssd"]).eval()
    with torch.no_grad():
        symmetrise("ssd", detector)
        nn.init.normal_(detector.get_submodule("head.classifiers.0").weight, std=0.1)  # pyright: ignore
        pixels = random_image(128, 128)
        size = torch.tensor([[128, 128]])
        found, again = [detector.predict(Images(x, size, size, ("0",))) for x in (pixels, pixels.flip(-1))]
        places = order("ssd", detector, detector.normalise(pixels))
    assert (again.scores - found.scores[:, places]).abs().max() > 0.01
