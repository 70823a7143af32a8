"""Fully connected layers as pairs: what they are called, and that a compressed detector is the same function."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from detkit.config import BackboneConfig
from detkit.errors import UserError
from detkit.models import build_detector
from detkit.models.compress import (
    LowRankLinear,
    compress,
    describe_layers,
    find_layer,
    fully_connected_layers,
    restructure,
)
from detkit.models.region import RegionDetector
from tests.builders import batch_with_proposals, tiny_fast_rcnn_config, tiny_faster_rcnn_config


def fast(**keys) -> RegionDetector:
    torch.manual_seed(0)
    detector = build_detector(tiny_fast_rcnn_config(**keys), ("a", "b")).eval()
    assert isinstance(detector, RegionDetector)
    for name, parameter in detector.head.named_parameters():
        if not name.startswith("tail") and name.endswith("weight"):  # as if trained: the layers below matter
            nn.init.normal_(parameter, std=0.5)
    return detector


def names(detector: nn.Module) -> dict[str, str]:
    return {name: path for name, (path, _) in fully_connected_layers(detector).items()}


def test_layers_have_the_papers_names() -> None:
    own = {"head.classifier": "head.classifier", "head.regressor": "head.regressor"}
    assert names(fast()) == {"fc6": "head.tail.1", "fc7": "head.tail.3", **own}
    with torch.device("meta"):  # names need no half gigabyte of weights
        vgg = fast(backbone=BackboneConfig("vgg16"), pool_size=7)
    assert names(vgg) == {"fc6": "head.tail.1.0", "fc7": "head.tail.1.3", **own}
    assert names(fast(backbone=BackboneConfig("resnet18"))) == own
    pyramid = tiny_faster_rcnn_config(backbone=BackboneConfig("resnet18"), neck="fpn", channels=24, scales=[2.0])
    assert names(build_detector(pyramid, ("a",))) == {"fc6": "head.tail.1", "fc7": "head.tail.3", **own}


def test_layers_are_found_by_name_path_and_end() -> None:
    detector = fast()
    for text in ("fc6", "head.tail.1", "tail.1", "1"):
        assert find_layer(detector, text) == "fc6"
    assert find_layer(detector, "regressor") == "head.regressor"
    with pytest.raises(UserError) as caught:
        find_layer(detector, "fc8")
    assert str(caught.value) == (
        "no fully connected layer 'fc8'; there are fc6 (head.tail.1, 864 -> 256), fc7 (head.tail.3, 256 -> 256), "
        "head.classifier (256 -> 3), head.regressor (256 -> 8)"
    )
    two = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2)), "b": nn.Sequential(nn.Linear(2, 2))})
    with pytest.raises(UserError, match=r"'0' is the end of several layers: a\.0, b\.0"):
        find_layer(two, "0")
    assert describe_layers(nn.ReLU()) == "none"


def test_full_rank_is_the_same_function() -> None:
    detector = fast()
    images, _ = batch_with_proposals()
    with torch.inference_mode():
        expected = detector.predict(images)
        done = compress(detector, {"fc6": 256, "fc7": 256, "classifier": 3, "regressor": 8})
        found = detector.predict(images)
    assert [(one.name, one.error) for one in done] == [
        ("fc6", 0.0),
        ("fc7", 0.0),
        ("head.classifier", 0.0),
        ("head.regressor", 0.0),
    ]
    assert all(isinstance(layer, LowRankLinear) for _, layer in fully_connected_layers(detector).values())
    assert expected.scores[0].std() > 0.02
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-4, rtol=1e-5)


def test_weights_are_the_truncated_svd_and_the_bias_stays() -> None:
    detector = fast()
    layer = deepcopy(detector.get_submodule("head.tail.1"))
    assert isinstance(layer, nn.Linear)
    (done,) = compress(detector, {"head.tail.1": 20})
    assert (done.name, done.after.rank) == ("fc6", 20)
    pair = detector.get_submodule("head.tail.1")
    assert pair is done.after
    assert isinstance(pair, LowRankLinear)
    assert not pair.training
    u, values, v = np.linalg.svd(layer.weight.detach().double().numpy(), full_matrices=False)
    product = (pair.second.weight.double() @ pair.first.weight.double()).detach().numpy()
    np.testing.assert_allclose(product, (u[:, :20] * values[:20]) @ v[:20], atol=1e-5)
    assert done.error == pytest.approx(np.linalg.norm(values[20:]) / np.linalg.norm(values), rel=1e-6)
    assert pair.first.bias is None
    assert torch.equal(pair.second.bias, layer.bias)
    x = torch.randn(5, 864)
    torch.testing.assert_close(pair(x), x @ torch.from_numpy(product).float().T + layer.bias, atol=1e-5, rtol=1e-5)


def test_a_config_rebuilds_the_pairs() -> None:
    detector = fast()
    compress(detector, {"fc6": 20, "regressor": 5})
    again = fast(svd={"fc6": 20, "head.regressor": 5})
    shapes = {name: tensor.shape for name, tensor in detector.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    again.load_state_dict(detector.state_dict())
    images, targets = batch_with_proposals()
    with torch.inference_mode():
        assert torch.equal(again.predict(images).scores, detector.predict(images).scores)
    sum(again.train()(images, targets).values()).backward()
    pair = again.get_submodule("head.tail.1")
    assert isinstance(pair, LowRankLinear)
    assert pair.first.weight.grad is not None


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    detector = fast()
    compress(detector, {"fc7": 9})
    before = names(detector)
    state = detector.state_dict()
    for ranks, text in (
        ({"fc6": 20, "fc7": 3}, "fc7 is of rank 9 already; start from the whole checkpoint"),
        ({"fc6": 20, "tail.1": 3}, "'tail.1' is fc6, which is named twice"),
        ({"fc6": 20, "regressor": 9}, "regressor: rank 9 of 256 -> 8 is not in 1..8"),
        ({"fc6": 0}, "fc6: rank 0 of 864 -> 256 is not in 1..256"),
        ({"fc6": 20, "fc5": 9}, "no fully connected layer 'fc5'"),
    ):
        with pytest.raises(UserError) as caught:
            compress(detector, ranks)
        assert str(caught.value).startswith(text)
        assert names(detector) == before
        assert detector.state_dict().keys() == state.keys()
    with pytest.raises(UserError, match=r"model\.svd: no fully connected layer 'fc8'; there are fc6"):
        fast(svd={"fc8": 3})
    pretrained = replace(tiny_fast_rcnn_config(svd={"fc6": 3}), backbone=BackboneConfig("tiny", "imagenet"))
    detector.config = pretrained
    with pytest.raises(UserError, match=r"model\.svd: pairs cannot take weights from model\.backbone\.weights"):
        restructure(detector, pretrained.svd)
