"""The deconvnet against a slow loop from the paper, and guided backpropagation against Captum's."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import detkit
from detkit.config import Config
from detkit.errors import UserError
from detkit.inside import Asked, deconvnet, guided_backpropagation, of_detector, open_network
from tests.inside.small import Fire, asked, classifier, image, network


def transposed(y: np.ndarray, layer: nn.Conv2d, shape: tuple[int, ...]) -> np.ndarray:
    """Each value puts its filter, times the value, where the filter had looked."""
    weight, stride, pad = layer.weight.detach().double().numpy(), layer.stride[0], int(layer.padding[0])
    side = weight.shape[-1]
    x = np.zeros((shape[0], shape[1] + 2 * pad, shape[2] + 2 * pad))
    for unit, row, column in np.argwhere(y):
        top, left = row * stride, column * stride
        x[:, top : top + side, left : left + side] += y[unit, row, column] * weight[unit]
    return x[:, pad : pad + shape[1], pad : pad + shape[2]]


def unpooled(y: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Each value goes where the maximum of its window of 3 x 3, stride 2, was: the switch."""
    x = np.zeros_like(below)
    for unit, row, column in np.argwhere(y):
        window = below[unit, row * 2 : row * 2 + 3, column * 2 : column * 2 + 3]
        down, right = divmod(int(window.argmax()), window.shape[1])
        x[unit, row * 2 + down, column * 2 + right] += y[unit, row, column]
    return x


def rectified(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def by_the_paper(seen: Tensor, layers: nn.Sequential, unit: int, cell: tuple[int, int]) -> np.ndarray:
    conv, relu, pool, fire = layers[0], layers[1], layers[2], layers[3]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(fire, Fire)
    with torch.no_grad():
        below = relu(conv(seen))
        pooled = pool(below)
        top = fire(pooled)[0].double().numpy()
    signal = np.zeros_like(top)
    signal[unit, *cell] = top[unit, *cell]
    signal = rectified(signal)
    shape = pooled.shape[1:]
    x = transposed(signal[:3], fire.small, shape) + transposed(signal[3:], fire.large, shape)
    x = rectified(unpooled(x, below[0].double().numpy()))
    return transposed(x, conv, seen.shape[1:])


@pytest.mark.parametrize("unit", range(6))
def test_deconvnet_is_that_of_the_paper(unit: int) -> None:
    whole = network()
    pixels = whole.pixels(image())
    values = whole.record(pixels, ["3"])["3"][0, unit]
    cell = divmod(int(values.argmax()), values.shape[1])
    got = deconvnet(whole, "3", pixels, unit, [cell])[0].numpy()
    assert isinstance(whole.body, nn.Sequential)
    wanted = by_the_paper(whole.normalise(pixels), whole.body, unit, cell)
    assert float(values.max()) <= 0 or np.abs(wanted).max() > 0
    np.testing.assert_allclose(got, wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["alexnet", "zfnet", "vgg11", "squeezenet1_1"])
def test_networks_of_the_paper_s_kind(name: str) -> None:
    whole = open_network(name)
    layer = whole.layers[1]
    maps = whole.record(pixels := whole.pixels(image(64)), [layer])[layer][0]
    unit = int(maps.flatten(1).amax(1).argmax())
    cell = divmod(int(maps[unit].argmax()), maps.shape[2])
    assert deconvnet(whole, layer, pixels, unit, [cell]).abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mobilenet_v2", r"needs max pooling.*mobilenet_v2 has .*Conv2d.*ReLU6.*; guided backpropagation works"),
        ("darknet_yolov1_tiny", r"needs the rectifier ReLU, and darknet_yolov1_tiny has LeakyReLU; saliency"),
    ],
)
def test_networks_of_another_kind_are_refused_in_a_line(name: str, reason: str) -> None:
    whole = open_network(name)
    with pytest.raises(UserError, match=reason) as caught:
        deconvnet(whole, whole.layers[0], torch.zeros(1, 3, 64, 64), 0, [(0, 0)])
    assert "\n" not in str(caught.value)


def test_a_detector_s_head_is_no_hindrance() -> None:
    """YOLO's own convolutions have leaky rectifiers, which no signal from a layer of the backbone passes."""
    detector = detkit.create_model("yolov1", backbone="alexnet", classes=["a"], size=64, feature="conv5", head="conv")
    whole = of_detector(detector.eval(), Config(model=detector.config), "yolov1")
    pixels = whole.pixels(image(64))
    assert deconvnet(whole, whole.layers[0], pixels, 0, [(2, 2)]).shape == pixels.shape
    with pytest.raises(
        UserError, match="guided backpropagation needs the rectifier ReLU or ReLU6, and yolov1 has Leaky"
    ):
        guided_backpropagation(whole, Asked("a", image(64), pixels, lambda changed: changed.sum((1, 2, 3))))


def test_guided_backpropagation_is_captum_s_where_that_has_it() -> None:
    attr = pytest.importorskip("captum.attr")
    whole = classifier()
    one = asked(whole)
    seen = whole.normalise(one.pixels).requires_grad_()
    with pytest.warns(UserWarning, match="backward hooks"):
        wanted = attr.GuidedBackprop(whole.body).attribute(seen, target=1)[0]
    std = torch.tensor(whole.input.std).view(3, 1, 1) * 255
    torch.testing.assert_close(guided_backpropagation(whole, one), wanted / std)


def test_guided_backpropagation_sees_functions_and_relu6() -> None:
    """Captum's has the plain gradient there."""

    class Functions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -nn.functional.relu6(torch.relu(x) - 1).sum((1, 2, 3))

    whole = network(Functions())
    pixels = whole.pixels(image())
    one = Asked("", image(), pixels, lambda changed: whole.run(changed))
    assert guided_backpropagation(whole, one).abs().sum() == 0  # all that comes back is negative


def test_response_norm_is_not_inverted() -> None:
    whole = open_network("zfnet")
    maps = whole.record(pixels := whole.pixels(image(64)), ["features.2"])["features.2"][0]
    cell = divmod(int(maps[0].argmax()), maps.shape[2])
    normed, plain = (deconvnet(whole, layer, pixels, 0, [cell]) for layer in ("features.2", "features.1"))
    value = whole.record(pixels, ["features.1"])["features.1"][0, 0, *cell] / maps[0].max()
    torch.testing.assert_close(normed * value, plain, rtol=1e-4, atol=1e-6)
