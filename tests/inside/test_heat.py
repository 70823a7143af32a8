"""Saliency, occlusion and Grad-CAM: against finite differences, a plain loop, the formula; of detections, too."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from detkit.errors import UserError
from detkit.inside import (
    Asked,
    class_score,
    detection_scores,
    grad_cam,
    guided_backpropagation,
    of_detector,
    open_network,
    saliency,
    similarity,
    untrained,
)
from detkit.inside.occlusion import occlusion
from tests import zoo
from tests.explain.explained import build
from tests.explain.explained import image as photo
from tests.inside.small import asked, classifier, image

pytest.importorskip("captum")


def finite(score, pixels: Tensor, places: list[tuple[int, ...]], step: float = 1e-4) -> Tensor:
    """The slopes of a score at some pixels, (channel, row, column)."""
    slopes = []
    for place in places:
        ends = []
        for sign in (1, -1):
            moved = pixels.clone()
            moved[0, *place] += sign * step
            ends.append(score(moved))
        slopes.append((ends[0] - ends[1]) / (2 * step))
    return torch.cat(slopes).detach()


def test_saliency_is_the_largest_slope_of_each_pixel() -> None:
    whole = classifier()
    whole.body.double()
    one = asked(whole)
    one = replace(one, pixels=one.pixels.double())
    height, width = one.pixels.shape[-2:]
    places = [(channel, height // 2, column) for column in range(0, width, 5) for channel in range(3)]
    wanted = finite(one.score, one.pixels, places).abs().view(-1, 3).amax(1)
    got = saliency(one)[height // 2, ::5]
    assert wanted.max() > 0
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("name", ["ssd", "yolov2", "faster_rcnn"])
def test_slopes_of_a_detection_and_its_box(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before NMS, at one anchor, place or region."""
    detector, config = build(name)
    (score, left, *_), found = detection_scores(of_detector(detector, config, name), photo(), 1)
    assert float(score.score(score.pixels)) == pytest.approx(float(found.scores[0]), rel=1e-5)
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # decoding is in float32, whatever comes
    detector.double()
    pixels = score.pixels.double()
    for one in (score, left):
        moved = pixels.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(one.score(moved).sum(), moved)
        strongest = gradient[0].abs().flatten().topk(6).indices.numpy()
        places = [tuple(place) for place in np.stack(np.unravel_index(strongest, gradient.shape[1:]), 1).tolist()]
        wanted = finite(one.score, pixels, places)
        got = torch.stack([gradient[0, *place] for place in places])
        assert wanted.abs().min() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_detector_is_followed_in_batches(name: str) -> None:
    detector, config = build(name)
    asked, found = detection_scores(of_detector(detector, config, name), photo(), 2)
    pixels = asked[0].pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(asked[0].score(pixels).sum(), pixels)
    assert gradient.abs().sum() > 0
    both = asked[0].score(torch.cat([pixels.detach(), pixels.detach().flip(3)]))
    assert float(both[0]) == pytest.approx(float(found.scores[1]), rel=1e-4)
    sides = torch.tensor([float(one.score(pixels.detach())) for one in asked[1:]])
    factors = found.factors.flip(0).repeat(2).float()
    height, width = photo().shape[:2]
    limit = np.array([width, height] * 2)
    np.testing.assert_allclose((sides * factors).numpy().clip(0, limit), found.boxes[1], rtol=1e-3, atol=1e-2)


def test_occlusion_is_that_of_a_plain_loop() -> None:
    whole = classifier(side=20)
    one = asked(whole)
    size, stride = 6, 4
    grey = torch.tensor(whole.input.mean).view(3, 1, 1) * 255
    base = one.score(one.pixels)
    total, count = torch.zeros(20, 20), torch.zeros(20, 20)
    top = 0
    tops = []
    while True:  # until the last square reaches the end
        tops.append(top)
        if top + size >= 20:
            break
        top += stride
    for top in tops:
        for left in tops:
            hidden = one.pixels.clone()
            hidden[0, :, top : top + size, left : left + size] = grey
            total[top : top + size, left : left + size] += (base - one.score(hidden)).item()
            count[top : top + size, left : left + size] += 1
    assert total.abs().max() > 0
    torch.testing.assert_close(occlusion(whole, one, size, stride), total / count, rtol=1e-4, atol=1e-6)


def test_grad_cam_is_the_formula() -> None:
    whole = classifier()
    one = asked(whole)
    heat, layer = grad_cam(whole, one)
    assert layer == "3"  # the maps of the classes' scores are no features
    maps = whole.record(one.pixels, ["3"])["3"][0]
    # a mean over cells of a 1x1 convolution: each map's weight is the convolution's, over the cells
    head = whole.body.get_submodule("4")
    weights = head.weight[1, :, 0, 0] / maps[0].numel()  # pyright: ignore
    torch.testing.assert_close(heat, (weights[:, None, None] * maps).sum(0).clamp(min=0))


def test_untrained_maps_are_others() -> None:
    whole = classifier()
    bare = untrained(whole, seed=3)
    one, other = asked(whole), asked(bare)
    assert similarity(saliency(one), saliency(one)) == pytest.approx(1)
    assert abs(similarity(saliency(one), saliency(other))) < 0.8
    torch.testing.assert_close(saliency(other), saliency(asked(untrained(whole, seed=3))))
    assert np.isnan(similarity(torch.zeros(3), torch.arange(3.0)))


def test_what_cannot_be_asked() -> None:
    with pytest.raises(UserError, match=r"tiny: its weights have no classifier, so no class has a score; give"):
        class_score(open_network("tiny"), image())
    with pytest.raises(UserError, match=r"small: no class 'bb'; did you mean 'b'\?|small: no class 'bb'; known"):
        class_score(classifier(), image(), "bb")
    detector, config = build("ssd")
    with pytest.raises(UserError, match=r"--detection 9999: there are \d+, 1 to \d+ with a score above"):
        detection_scores(of_detector(detector, config, "ssd"), photo(), 9999)
    whole = open_network("mobilenet_v3_small")
    with pytest.raises(UserError, match=r"guided backpropagation needs the rectifier ReLU or ReLU6, and .*Hardswish"):
        guided_backpropagation(whole, Asked("", image(), torch.zeros(1, 3, 32, 32), lambda x: x.sum((1, 2, 3))))
