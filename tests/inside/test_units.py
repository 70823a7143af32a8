"""Layers, receptive fields, strongest patches, maximisation, invariance."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detkit.data.formats import open_root
from detkit.data.shapes import draw_shapes
from detkit.errors import UserError
from detkit.inside import (
    effective_field,
    invariance,
    maximise,
    open_network,
    receptive_fields,
    strongest,
)
from detkit.inside.strongest import TOP
from tests.inside.small import image, network


def test_layers_end_with_their_rectifiers() -> None:
    assert network().layers == ["1", "3"]
    assert network().shapes["3"] == (6, 5, 5)
    assert open_network("zfnet").layers == [f"features.{number}" for number in (1, 5, 9, 11, 13)]
    mobilenet = open_network("mobilenet_v2").layers
    assert mobilenet[:2] + mobilenet[-2:] == ["features.0", "features.1", "features.17", "features.18"]
    assert "features.7.conv.0" in mobilenet  # a block that gives a map from within is never called as a whole


@pytest.mark.parametrize(
    ("layer", "unit", "reason"),
    [
        ("features.99", None, r"--layer features\.99: no layer of zfnet.*; it has features\.1, features\.5, .*13"),
        ("features.5", 256, r"--unit 256: features\.5 of zfnet has 256 units, 0 to 255"),
    ],
)
def test_an_unknown_layer_or_unit_is_refused_in_a_line(layer: str, unit: int | None, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        open_network("zfnet").check(layer, unit)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "size", "stride"),
    [("alexnet", 163, 16), ("zfnet", 139, 16), ("vgg16", 196, 16), ("mobilenet_v2", 491, 32), ("resnet18", 435, 32)],
)
def test_published_receptive_fields(name: str, size: int, stride: int) -> None:
    whole = open_network(name)
    field = receptive_fields(whole, whole.layers[-1:])[whole.layers[-1]]
    assert field.size.tolist() == [size, size]
    assert field.stride.tolist() == [stride, stride]


@pytest.mark.parametrize("name", ["tiny", "squeezenet1_0", "efficientnet_lite0"])
def test_the_field_is_what_a_positive_network_depends_on(name: str) -> None:
    whole = open_network(name)
    layer = whole.layers[3]
    whole.body.double()
    for module in whole.body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    whole.normalise = lambda pixels: pixels.double()  # positive all along
    pixels = torch.rand(1, 3, 96, 96) + 0.5
    with torch.no_grad():
        rows = whole.record(pixels, [layer])[layer].shape[2]
    found = sum(effective_field(whole, layer, [torch.rand(1, 3, 96, 96) + 0.5]) for _ in range(3))
    down, across = np.nonzero(found)
    field = receptive_fields(whole, [layer], (96, 96))[layer]
    left, top, right, bottom = field.box((rows // 2, rows // 2), (96, 96)).tolist()
    # the maximum of a pool's window leaves pixels out that another image would need
    assert (across.min(), down.min()) >= (left, top)
    assert (across.max() + 1, down.max() + 1) <= (right, bottom)
    if not any(isinstance(module, nn.MaxPool2d) for module in whole.body.modules()):
        assert (across.min(), down.min(), across.max() + 1, down.max() + 1) == (left, top, right, bottom)


def test_a_pooled_layer_sees_the_whole_image() -> None:
    whole = network(nn.AdaptiveAvgPool2d(1))
    field = receptive_fields(whole, ["4"])["4"]
    assert field.box((0, 0), (24, 20)).tolist() == [0, 0, 20, 24]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    draw_shapes(root, {"train": 21})
    return root


def test_strongest_patches_are_those_of_a_plain_loop(root: Path, tmp_path: Path) -> None:
    whole, dataset = network(side=48), open_root(root, ["train"])
    found = strongest(whole, dataset, ["1", "3"], tmp_path / "strongest.pt")
    for layer in ("1", "3"):
        maps = torch.cat([whole.record(whole.pixels(dataset.image(i)), [layer])[layer] for i in range(len(dataset))])
        values = maps.flatten(2).amax(2).T
        assert found[layer].values.shape == (len(values), TOP)
        torch.testing.assert_close(found[layer].values, values.topk(TOP).values, rtol=1e-5, atol=1e-5)
        unit = int(values.amax(1).argmax())
        images, cells = found[layer].images[unit], found[layer].cells[unit]
        at = maps[images, unit, cells[:, 0], cells[:, 1]]
        torch.testing.assert_close(at, found[layer].values[unit], rtol=1e-5, atol=1e-5)
        assert len(set(images.tolist())) == TOP


def test_an_interrupted_pass_goes_on_bit_for_bit(root: Path, tmp_path: Path) -> None:
    whole, dataset = network(side=48), open_root(root, ["train"])
    wanted = strongest(whole, dataset, ["3"], tmp_path / "whole.pt")
    path, steps = tmp_path / "strongest.pt", []

    def stop(text: str, done: int, total: int) -> None:
        steps.append(done)
        if done == 8:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"of 8 of 21 images are in .*strongest\.pt"):
        strongest(whole, dataset, ["3"], path, stop)
    found = strongest(whole, dataset, ["3"], path, lambda text, done, total: steps.append(done))
    assert steps == [8, 16, 21]
    for name, value in vars(found["3"]).items():
        assert torch.equal(value, getattr(wanted["3"], name)), name
    # all done: nothing is computed again, but for another network
    strongest(whole, dataset, ["3"], path, lambda *_: pytest.fail("computed again"))
    with torch.no_grad():
        whole.body.get_parameter("0.weight").add_(1)
    again: list[int] = []
    strongest(whole, dataset, ["3"], path, lambda text, done, total: again.append(done))
    assert again[-1] == 21
    path.write_bytes(b"PK\3\4 damaged")
    with pytest.raises(UserError, match=r"strongest\.pt: damaged, or not a file of strongest patches"):
        strongest(whole, dataset, ["3"], path)


def test_maximised_images_raise_their_units_and_follow_the_seed() -> None:
    whole = network(side=48)
    field = receptive_fields(whole, ["3"])["3"]
    alive = range(6)
    first, values = maximise(whole, "3", alive, field, seed=1, steps=40)
    again, _ = maximise(whole, "3", alive, field, seed=1, steps=40)
    other, _ = maximise(whole, "3", alive, field, seed=2, steps=40)
    assert first.shape == (6, 3, *field.size.astype(int).tolist())
    assert first.min() >= 0
    assert first.max() <= 255
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    _, start = maximise(whole, "3", alive, field, seed=1, steps=1)
    assert values.sum() > 1.5 * start.sum()  # of random units some can't rise


def test_silent_units_are_woken() -> None:
    """Behind its rectifier a unit that is silent on noise has no gradient."""
    whole = network(side=48)
    fire = whole.body.get_submodule("3")
    with torch.no_grad():
        for layer in (fire.small, fire.large):
            layer.bias -= 0.5
    field = receptive_fields(whole, ["3"])["3"]
    _, start = maximise(whole, "3", range(6), field, seed=1, steps=1)
    _, values = maximise(whole, "3", range(6), field, seed=1, steps=100)
    assert (start == 0).all()
    assert (values > 0).sum() >= 5  # one of six can see nothing that it likes


def test_features_move_as_the_image_does() -> None:
    whole = network(side=48)
    shift, scale, turn = invariance(whole, whole.pixels(image(48)), ["1", "3"])
    for curve, still in ((shift, [6]), (scale, [0]), (turn, [0, 12])):
        for distances in curve.distances.values():
            assert distances[still] == pytest.approx(0, abs=1e-4)
            assert np.delete(distances, still).min() > 0.05
    assert shift.amounts[[0, 6, 12]].tolist() == [-12, 0, 12]
