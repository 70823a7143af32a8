"""SPPNet: each region from the scale that suits it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from detkit.config import BackboneConfig
from detkit.errors import UserError
from detkit.models import build_detector
from detkit.models.sppnet import SHRINK, SPPNet, SPPNetConfig
from detkit.ops import sppnet_scale
from detkit.ops.roi import spp_pool
from detkit.structures import Images, Proposals
from tests.builders import batch_with_proposals, random_image
from tests.models.checks import check_unfitted


def config(**keys: Any) -> SPPNetConfig:
    small = SPPNetConfig(
        backbone=BackboneConfig("tiny"), scales=[48, 96], pyramid=[2, 1], batch_size_per_image=8, frozen=False
    )
    return replace(small, **keys)


@pytest.mark.parametrize("frozen", [True, False])
def test_it_learns_and_detects(frozen: bool) -> None:
    detector: Any = build_detector(config(frozen=frozen), ("a", "b")).train()
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
