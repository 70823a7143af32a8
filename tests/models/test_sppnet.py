"""SPPNet: each region from the scale that suits it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.ops import nms as torchvision_nms

from detkit.config import BackboneConfig, DetectConfig
from detkit.errors import UserError
from detkit.models import build_detector, postprocess, region_features
from detkit.models.sppnet import SHRINK, SPPNet, SPPNetConfig
from detkit.ops import clip, sppnet_scale
from detkit.ops.roi import spp_pool
from detkit.structures import Images, Proposals
from tests.builders import batch_with_proposals, random_image
from tests.models.checks import check_unfitted
from tests.ops.reference import random_boxes


def config(**keys: Any) -> SPPNetConfig:
    small = SPPNetConfig(
        backbone=BackboneConfig("tiny"), scales=[48, 96], pyramid=[2, 1], batch_size_per_image=8, frozen=False
    )
    return replace(small, **keys)


@pytest.mark.parametrize("frozen", [True, False])
def test_it_learns_and_detects(frozen: bool) -> None:
    detector: Any = build_detector(config(frozen=frozen, region_nms_iou=1.0), ("a", "b")).train()
    images, targets = batch_with_proposals()
    losses = detector(images, targets)
    assert set(losses) == {"classification"}
    losses["classification"].backward()
    for name, parameter in detector.named_parameters():
        still = name.startswith(("head.svm", "head.regressor")) or (frozen and name.startswith("backbone"))
        assert (parameter.grad is None) == still, name
    norms = [layer for layer in detector.backbone.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert norms
    assert all(layer.training != frozen for layer in norms)
    check_unfitted(detector, images)


def test_each_region_is_pooled_at_its_own_scale() -> None:
    """By a slow loop: the image resized as a whole, one map, one region."""
    scales = [150, 256, 400]
    detector = build_detector(config(scales=scales, pyramid=[3, 1]), ("a", "b")).eval()
    assert isinstance(detector, SPPNet)
    pixels = random_image(200, 240)
    size = torch.tensor([[200, 240]])
    boxes = torch.tensor(
        [[[0.0, 0, 240, 200], [5, 5, 180, 180], [10, 9, 40, 130], [133, 20, 141, 29], [210, 80, 240, 200]]]
    )
    images = Images(pixels, size, size, ("x",), Proposals(boxes, torch.ones(1, 5) > 0))
    level = sppnet_scale(boxes, size, scales)[0]
    assert set(level.tolist()) == {0, 1, 2}
    with torch.no_grad():
        found = detector.features.pool(detector.features.prepare(images, detector), boxes)[0]
        for row, box in enumerate(boxes[0]):
            factor = scales[int(level[row])] / 200
            resized = interpolate(detector.normalise(images.pixels, images.sizes), scale_factor=factor, mode="bilinear")
            maps = detector.backbone(resized)["c3"]
            alone = spp_pool(
                maps, (box * factor).view(1, 1, 4), [3, 1], 8, detector.backbone.first_cell_centre, SHRINK * 8
            )
            torch.testing.assert_close(found[row], alone[0, 0], atol=1e-3, rtol=1e-3)


def test_a_padded_batch_is_its_images_one_by_one() -> None:
    detector = build_detector(config(scales=[64, 200, 300]), ("a", "b")).eval()
    one, other = random_image(60, 90), random_image(96, 50, seed=1)
    pixels = torch.zeros(2, 3, 96, 90, dtype=torch.uint8)
    pixels[0, :, :60], pixels[1, :, :, :50] = one[0], other[0]
    sizes = torch.tensor([[60, 90], [96, 50]])
    boxes = torch.tensor([[[0.0, 0, 90, 60], [20, 20, 50, 45]], [[0.0, 0, 50, 96], [3, 7, 44, 60]]])
    valid = torch.ones(2, 2) > 0
    with torch.no_grad():
        together = detector.predict(Images(pixels, sizes, sizes, ("a", "b"), Proposals(boxes, valid)))
        for row, alone in enumerate((one, other)):
            part = slice(row, row + 1)
            images = Images(alone, sizes[part], sizes[part], ("x",), Proposals(boxes[part], valid[part]))
            torch.testing.assert_close(detector.predict(images).scores, together.scores[part], atol=1e-4, rtol=1e-3)


def test_training_pools_each_region_at_a_random_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any of the scales, whatever the region's size, as often; testing takes the one that suits it."""
    detector = build_detector(config(scales=[64, 100, 150]), ("a", "b")).train()
    assert isinstance(detector, SPPNet)
    images, _ = batch_with_proposals()
    boxes = random_boxes(2, 300, size=60, side=40)
    best = sppnet_scale(boxes, images.sizes, detector.config.scales)
    drawn: list[torch.Tensor] = []
    randint = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *a, **k: drawn.append(randint(*a, **k)) or drawn[-1])
    with torch.no_grad():
        prepared = detector.features.prepare(images, detector)
        found = detector.features.pool(prepared, boxes)
    (level,) = drawn
    assert torch.bincount(level.flatten(), minlength=3).min() > 150
    assert (level == best).float().mean() < 0.5
    for number, (x, factor) in enumerate(prepared.maps):
        alone = detector.features.pooling(x, boxes * factor.view(-1, 1, 1))
        assert torch.equal(found[level == number], alone[level == number])
    with torch.no_grad():
        tested = detector.eval().features.pool(detector.features.prepare(images, detector), boxes)
    assert len(drawn) == 1
    assert not torch.equal(tested, found)


def test_a_region_is_pooled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build_detector(config(scales=[64, 100, 150, 200]), ("a", "b")).eval()
    pooled: list[int] = []
    monkeypatch.setattr(
        region_features, "spp_pool", lambda x, boxes, *_: pooled.append(len(boxes)) or spp_pool(x, boxes, *_)
    )
    images, _ = batch_with_proposals()
    with torch.no_grad():
        predictions = detector.predict(images)
    assert sum(pooled) == predictions.scores.shape[0] * predictions.scores.shape[1]
    assert len(pooled) == 4


@pytest.mark.parametrize("scales", [[96], [48, 96]])
def test_regions_of_one_window_are_alike(scales: list[int]) -> None:
    """The first valid region of those whose features are equal; by a slow loop over all pairs."""
    detector = build_detector(config(scales=scales), ("a", "b")).eval()
    images, _ = batch_with_proposals()
    boxes = random_boxes(2, 20, size=60, side=30).repeat(1, 2, 1)
    boxes[:, 20:] += 0.4 * torch.rand(2, 20, 4)  # within the same cells, or just over their border
    valid = torch.rand(2, 40) > 0.2
    with torch.no_grad():
        features = detector.features.pool(detector.features.prepare(images, detector), boxes).flatten(2)
    found = detector.features.distinct(boxes, images.sizes, valid)
    for i in range(2):
        rows = [row for row in range(40) if valid[i, row]]
        alike = [
            any(torch.equal(features[i, row], features[i, other]) for other in rows if other < row) for row in rows
        ]
        assert found[i].nonzero().flatten().tolist() == [row for row, again in zip(rows, alike) if not again]
        assert 5 < sum(alike) < 20


def test_testing_suppresses_regions_then_boxes() -> None:
    """NMS of the regions of a class, its best 7, moved, NMS of the boxes: by a slow loop, class by class."""
    detector = build_detector(config(scales=[96], region_nms_iou=0.3), ("a", "b")).eval()
    images, _ = batch_with_proposals()
    regions = images.proposals
    assert regions is not None
    detector.head.regressor.weight.normal_(std=0.1)
    detector.head.classifier.weight.data.normal_()
    settings = DetectConfig(score_threshold=0.2, top_k=7, nms_iou=0.4)
    with torch.no_grad():
        found, _ = postprocess(detector.predict(images), images, settings)
        prepared = detector.features.prepare(images, detector)
        scores, deltas = detector.head.predict(detector.features.pool(prepared, regions.boxes))
    boxes = clip(detector.head.coder.decode(deltas, regions.boxes.unsqueeze(2)), images.sizes)
    for i in range(2):
        expected = []
        for k in range(2):
            rows = regions.valid[i].nonzero().flatten()
            rows = rows[torchvision_nms(regions.boxes[i, rows], scores[i, rows, k], 0.3)]  # best first
            rows = rows[scores[i, rows, k] > 0.2][:7]
            rows = rows[torchvision_nms(boxes[i, rows, k], scores[i, rows, k], 0.4)]
            expected += [(float(scores[i, row, k]), k, boxes[i, row, k].tolist()) for row in rows]
        expected.sort(reverse=True)
        one, score, label = found.image(i)
        assert len(score) > 4
        assert label.tolist() == [k for _, k, _ in expected]
        torch.testing.assert_close(one, torch.tensor([box for _, _, box in expected]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scales": []}, r"model.scales: empty"),
        ({"pyramid": [7]}, r"model.pyramid: 7 is not in \[1, 6\]"),
    ],
)
def test_values_are_checked(keys: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**keys)
