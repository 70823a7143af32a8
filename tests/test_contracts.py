"""What every detector promises on every backbone.

Shapes and gradients of all pairs are checked without values, on torch's meta device. What needs values is checked on
`FEW` backbones, which stand for the others: with and without batch norm, with a tail of their own and without; the
option --full takes all that fit.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import detkit
from detkit.config import DetectConfig
from detkit.errors import UserError
from detkit.models import Detector, build_detector, postprocess
from detkit.structures import Images, Targets
from tests import zoo
from tests.builders import objects_of

EVERY = [(model, backbone) for model in zoo.MODELS for backbone in detkit.list_backbones()]
FEW = ("tiny", "squeezenet1_1", "mobilenet_v3_small")
# pairs that cannot be, and what the one line says
MISFITS = {
    ("torchvision_ssd", "alexnet"): "wants 2 to 6 maps of stride 8 and up, and AlexNet gives 1",
    ("torchvision_ssd", "zfnet"): "wants 2 to 6 maps of stride 8 and up, and ZFNet gives 1",
    ("torchvision_ssd", "inception_v3"): "model.size: 300 pixels a side are too few for InceptionV3; 336 are enough",
    (
        "retinanet",
        "resnet50_reduced",
    ): "c3 and c4 have one stride, 8, and a pyramid wants one map of each",
}
# detectors that cannot predict without values, and what these are needed for
NEEDS_VALUES = {
    "faster_rcnn": "what NMS leaves of its proposals",
    "mask_rcnn": "what NMS leaves of its proposals",
    "rfcn": "what NMS leaves of its proposals",
    "sppnet": "what NMS leaves of its regions",
    "torchvision_ssd": "default boxes on the CPU",
}
FITTING = [pair for pair in EVERY if pair not in MISFITS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"model", "backbone"} <= set(metafunc.fixturenames) and "every" not in metafunc.fixturenames:
        full = metafunc.config.getoption("--full")
        metafunc.parametrize(("model", "backbone"), [pair for pair in FITTING if full or pair[1] in FEW])


def trainable(detector: Detector) -> dict[str, Tensor]:
    return {name: p for name, p in detector.named_parameters() if p.requires_grad}


@pytest.fixture
def no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes torch long on the meta device: values of weights, and the mean and variance of batches."""
    names = ("kaiming_normal_", "kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_")
    for name in names:
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    monkeypatch.setattr(
        nn.BatchNorm2d, "forward", lambda self, x: x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
    )
    # the size of a rescaled image is a number that a tensor without values has not
    monkeypatch.setattr("detkit.models.region_features.rescale", lambda pixels, sizes, factor: (pixels, sizes))


@pytest.mark.parametrize(("model", "every"), FITTING)
def test_shapes_and_gradients(model: str, every: str, no_values: None) -> None:
    with torch.device("meta"):
        detector = zoo.build(model, every).eval()
        images = zoo.sample_images(detector)
        outputs = detector.raw_outputs(images)
        parameters = trainable(detector)
        grads = torch.autograd.grad([x.sum() for x in outputs], list(parameters.values()), allow_unused=True)
        assert not [name for name, grad in zip(parameters, grads) if grad is None]
        assert all(x.dtype == torch.float32 for x in outputs)
        if model in NEEDS_VALUES:
            return
        predictions = detector.predict(images)
        count = predictions.scores.shape[1]
        assert predictions.scores.shape == (2, count, 2)
        assert predictions.boxes.shape in ((2, count, 4), (2, count, 2, 4))
        if images.proposals is not None:
            assert count == images.proposals.boxes.shape[1]
        else:  # the deltas, four of each box that is predicted
            assert [x for x in outputs if x[0].numel() == count * 4]


@pytest.mark.parametrize(("model", "every"), MISFITS)
def test_what_cannot_be_is_one_line(model: str, every: str, no_values: None) -> None:
    with torch.device("meta"), pytest.raises(UserError) as error:
        zoo.build(model, every)
    assert MISFITS[model, every] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "every", "keys", "words"),
    [
        ("ssd", "inception_v3", {"size": 64}, "model.size: 64 pixels a side are too few for InceptionV3; 80 are"),
        ("ssd", "alexnet", {"size": 16}, "model.size: 16 pixels a side are too few for AlexNet; 32 are enough"),
        ("ssd", "tiny", {"extras": [[8, 8, 5, 1, 0]]}, "model.extras: a map of 3 cells a side is too small for [8, 8"),
        ("ssd", "vgg16", {"features": ["c3"]}, "vgg16 gives the maps conv3_3, conv4_3, conv5_3, not 'c3'"),
        ("yolov2", "inception_v3", {"size": 64}, "model.size: 64 pixels a side are too few for InceptionV3; 80 are"),
        (
            "yolov2",
            "tiny",
            {"train_sizes": [90, 128]},
            "model.train_sizes: [90, 128] are not multiples of the map's st",
        ),
        ("yolov2", "tiny", {"train_sizes": [128]}, "model.train_sizes: [128] is not [least, largest]"),
        ("yolov2", "tiny", {"anchors": [[1.0]]}, "model.anchors: [[1.0]] is not a list of [width, height]"),
        ("yolov2", "tiny", {"passthrough": 6}, "model.passthrough: 6 is not a multiple of 4"),
        ("yolov2", "tiny", {"joined": [[8, 2, 1]]}, "model.joined: [8, 2, 1] is not [channels, odd kernel, 1]"),
        ("yolov3", "inception_v3", {"size": 64}, "model.size: 64 pixels a side are too few for InceptionV3; 80 are"),
        (
            "yolov3",
            "tiny",
            {"train_sizes": [90, 128]},
            "model.train_sizes: [90, 128] are not multiples of the map's st",
        ),
        ("yolov3", "tiny", {"features": ["c4", "c5"]}, "model.features: 2 maps, but model.convolutions has 3 scales"),
        (
            "yolov3",
            "tiny",
            {"convolutions": [[[8, 1, 1]], [], []]},
            "model.convolutions: every scale needs one or more",
        ),
        ("yolov3", "tiny", {"convolutions": [[[8, 2, 1]]] * 3}, "model.convolutions: [8, 2, 1] is not [channels, odd"),
        ("yolov3", "tiny", {"reduced": [8]}, "model.reduced: [8], but model.convolutions has 3 scales: 2 of it"),
        (
            "yolov3",
            "tiny",
            {"masks": [[2], [1], [3]]},
            "model.masks: [3] are not numbers of model.anchors, from 0 to 2",
        ),
        ("yolov3", "tiny", {"masks": [[2], [1]]}, "model.masks: 2 masks, 3 anchors for 3 scales; each needs its own"),
        (
            "yolov3",
            "tiny",
            {"anchors": [[8.0, 8.0]] * 2},
            "model.anchors, model.masks: 3 masks, 2 anchors for 3 scales;",
        ),
        ("yolov1", "inception_v3", {"size": 64}, "model.size: 64 pixels a side are too few for InceptionV3; 80 are"),
        ("yolov1", "tiny", {"feature": "c6"}, "model.feature: tiny gives the maps c3, c4, c5, not 'c6'"),
        ("retinanet", "inception_v3", {"size": [64, 96]}, "model.size: 64 pixels a side are too few for InceptionV3; "),
        ("retinanet", "tiny", {"features": ["c2"]}, "model.features: tiny gives the maps c3, c4, c5, not 'c2'"),
        ("retinanet", "tiny", {"size": [96, 64]}, "model.size: [96, 64] is not [shortest side, largest longest side]"),
        ("retinanet", "tiny", {"p6": "c6"}, "model.p6: 'c6' is not one of c5, p5"),
        ("retinanet", "tiny", {"anchors": "detectron"}, "model.anchors: 'detectron' is not one of py_faster_rcnn, "),
        ("torchvision_ssd", "tiny", {"size": 96}, "model.size: 96 pixels a side are too few for Tiny; 272 are enough"),
        ("rcnn", "inception_v3", {"crop": 24}, "model.crop: 24 pixels a side are too few for InceptionV3; 48 are"),
        ("sppnet", "inception_v3", {"scales": [300, 24]}, "model.scales: 24 pixels a side are too few for Inception"),
        ("fast_rcnn", "vgg16", {"pool_size": 6}, "model.pool_size: 6, but fc6 of VGG reads maps of 7 x 7"),
        ("rcnn", "alexnet", {"pool_size": 7}, "model.pool_size: 7, but fc6 of AlexNet reads maps of 6 x 6"),
        ("fast_rcnn", "darknet_yolov1_tiny", {"pool_size": 3}, "model.pool_size: 3 cells a side are too few for the b"),
        ("faster_rcnn", "inception_v3", {"pool_size": 2}, "cells a side are too few for the backbone's tail; it reads"),
        ("rcnn", "inception_v3", {"pool_size": 2}, "cells a side are too few for the backbone's tail; it reads"),
        ("faster_rcnn", "tiny", {"features": ["c4"]}, "model.features: without a neck regions are pooled from c3"),
    ],
)
def test_a_misfit_is_one_line_that_says_what_fits(
    model: str, every: str, keys: dict[str, Any], words: str, no_values: None
) -> None:
    with torch.device("meta"), pytest.raises(UserError) as error:
        detkit.create_model(model, backbone=every, classes=zoo.CLASSES, **{**zoo.KEYS[model], **keys})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_predictions(model: str, backbone: str) -> None:
    detector = zoo.build(model, backbone).eval()
    images = zoo.sample_images(detector)
    with torch.inference_mode():
        found = detector.predict(images)
        scores = found.scores[found.scores > -torch.inf]
        assert scores.isfinite().all()
        assert found.boxes.isfinite().all()
        assert found.scores.shape[::2] == (2, 2)
        assert found.boxes.dtype == found.scores.dtype == torch.float32
        detections, _ = postprocess(found, images, DetectConfig(score_threshold=-1e9, detections_per_image=5))
    assert detections.boxes.shape == (2, 5, 4)
    assert (detections.boxes >= 0).all()
    assert (detections.boxes <= images.original.flip(-1).repeat(1, 2).unsqueeze(1) + 1e-3).all()

    # a batch is its images one by one; on the same canvas, since biases fill what pads an image from layer to layer
    for number in range(2):
        one = images.part(slice(number, number + 1))
        count = None if one.proposals is None else int(one.proposals.valid.sum())
        cut = None if one.proposals is None else one.proposals.map(lambda tensor, count=count: tensor[:, :count])
        alone = Images(one.pixels, one.sizes, one.original, one.ids, cut)
        # sums in another order; a hundred random layers with shortcuts make the logits of SSD large, and the error too
        slack = 10 if backbone in ("resnet101", "resnet152") else 1
        if (
            detector.proposal_settings() is not None
        ):  # up to its own proposals, since rounding may decide which anchors become one
            with torch.inference_mode():
                pairs = list(zip(detector.raw_outputs(images), detector.raw_outputs(alone), strict=True))
            for together, single in pairs:
                torch.testing.assert_close(together[number], single[0], rtol=1e-3, atol=slack * 1e-4)
            continue
        with torch.inference_mode():
            expected = detector.predict(alone)
        scores, boxes = found.scores[number, :count], found.boxes[number, :count]
        torch.testing.assert_close(scores, expected.scores[0], rtol=1e-3, atol=slack * 1e-4)
        torch.testing.assert_close(boxes, expected.boxes[0], rtol=slack * 1e-3, atol=slack * 1e-2)

    # another detector of the same config with the same state is the same
    torch.manual_seed(1)
    other = build_detector(detector.config, detector.classes).eval()
    other.load_state_dict(detector.state_dict())
    with torch.inference_mode():
        again = other.predict(images)
    assert torch.equal(found.scores, again.scores)
    assert torch.equal(found.boxes, again.boxes)


def batches(detector: Detector) -> dict[str, Targets]:
    """Objects of every kind that a batch of two may have."""
    height, width = zoo.side(detector)
    some = zoo.some_objects(detector)
    pixel = [20.0, 30.0, 21.0, 31.0]
    many = zoo.regions(300, height, width - 14, 1).tolist()
    targets = {
        "some": some,
        "none": objects_of([], []),
        "some without": objects_of(some.boxes[0].tolist(), []),
        "ignored": Targets(some.boxes, some.labels, some.valid),
        "one pixel": objects_of([pixel], [pixel, [0.0, 0.0, 1.0, 1.0]]),
        "300": objects_of(many, many[:7]),
    }
    return {kind: zoo.with_masks(detector, objects) for kind, objects in targets.items()}


def test_losses(model: str, backbone: str) -> None:
    detector = zoo.build(model, backbone).train()
    parameters = trainable(detector)
    for kind, targets in batches(detector).items():
        images = zoo.sample_images(detector, around=targets)
        losses = detector(images, targets)
        total = sum(losses.values())
        assert isinstance(total, Tensor)
        assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values()), (kind, losses)
        if kind == "some":
            assert total > 0
        grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        for (name, _), grad in zip(parameters.items(), grads):
            assert grad is not None, (kind, name)
            assert grad.isfinite().all(), (kind, name)
    # the recipes for small computers
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector(images, targets)
        grads = torch.autograd.grad(sum(losses.values()), list(parameters.values()))  # pyright: ignore
        with torch.inference_mode():
            found = detector.eval().predict(images)
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert all(grad.isfinite().all() for grad in grads)
    assert found.boxes.isfinite().all()
    assert (found.scores < torch.inf).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cpu_is_cuda(model: str, backbone: str) -> None:
    detector = zoo.build(model, backbone).eval()
    images = zoo.sample_images(detector)
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        outputs = detector.raw_outputs(images)
        theirs = detector.cuda().raw_outputs(images.to("cuda"))
    for one, other in zip(outputs, theirs):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-3, atol=1e-4 * float(one.abs().max()))


@pytest.mark.parametrize("fpn", [False, True])
@pytest.mark.parametrize("name", zoo.MODELS)
def test_targets_without_a_single_column(name: str, fpn: bool) -> None:
    """(B, 0) objects are as good as (B, 1) of padding: nothing to find, and nothing to explain."""
    if fpn and name not in ("faster_rcnn", "mask_rcnn"):
        pytest.skip("has no neck")
    torch.manual_seed(0)
    detector = zoo.build(name, **({"neck": "fpn", "channels": 8, "scales": [2.0]} if fpn else {})).train()
    images = zoo.sample_images(detector)
    none = torch.zeros(2, 0, dtype=torch.int64)
    losses = detector(images, Targets(torch.zeros(2, 0, 4), none, none.bool()))
    assert all(loss.isfinite() for loss in losses.values())
    boxes = [losses[key] for key in ("box", "rpn_box", "centre", "side") if key in losses]
    assert sum(boxes) == 0
    sum(losses.values()).backward()
    one, nothing = images.part(slice(0, 1)), Targets(torch.zeros(1, 0, 4), none[:1], none[:1].bool())
    with torch.inference_mode():
        assert detector.eval().trace(one, nothing).predictions.scores.isfinite().any()


@pytest.mark.parametrize("name", zoo.MODELS)
def test_the_network_is_compiled_and_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def compile_nothing(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(function.__name__)
            return function(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", compile_nothing)
    detector = zoo.build(name).eval()
    images = zoo.sample_images(detector)
    with torch.inference_mode():
        expected = detector.predict(images)
        detector.compile_network()
        found = detector.predict(images)
    assert set(calls) == {"network" if detector.kind == "dense" else "backbone_maps"}
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.scores, expected.scores)
