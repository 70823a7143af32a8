"""What all region detectors share: which regions are sampled, chunks, padding, scales, and what is traced."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from detkit.backbones import FeatureInfo
from detkit.models import build_detector, region_features
from detkit.models.rcnn import RCNN
from detkit.models.region import SampledRegions, sample_regions
from detkit.models.region_features import MapFeatures, PyramidFeatures, SpatialPyramidPooling
from detkit.models.region_head import RegionHead
from detkit.models.trace import PooledStep, ProposalStep
from detkit.ops import box_iou, roi_align, roi_pool
from detkit.structures import Proposals
from tests import zoo
from tests.builders import batch_with_proposals, objects_of, tiny_fast_rcnn_config, tiny_faster_rcnn_config


def test_the_objects_that_are_trained_on_are_among_the_regions() -> None:
    """Where there are no proposals, they alone are sampled."""
    torch.manual_seed(0)
    targets = objects_of([[10.0, 10, 50, 50], [10.0, 16, 50, 56], [60.0, 5, 80, 30]], [[5.0, 5, 20, 20]])
    assert box_iou(targets.boxes[0, 0:1], targets.boxes[0, 1:2]) > 0.5  # would be the other's region, were it one
    targets = replace(targets, ignore=torch.tensor([[False, True, False], [False, False, False]]))
    none = Proposals(torch.zeros(2, 4, 4), torch.zeros(2, 4, dtype=torch.bool))
    sampled = sample_regions(none, targets, 2, tiny_fast_rcnn_config(positive_fraction=1.0))
    for image, objects in enumerate([[0, 2], [0]]):
        valid = sampled.valid[image]
        order = sampled.matched_gt_index[image][valid].argsort()
        assert sampled.matched_gt_index[image][valid][order].tolist() == objects
        assert torch.equal(sampled.boxes[image][valid][order], targets.boxes[image, objects])
        assert torch.equal(sampled.labels[image][valid][order], targets.labels[image, objects])


def test_chunks_bound_the_regions_of_all_images_together(monkeypatch: pytest.MonkeyPatch) -> None:
    detector: Any = zoo.build("rcnn").eval()
    assert isinstance(detector, RCNN)
    images, _ = batch_with_proposals()
    assert images.proposals is not None
    features: Any = detector.features
    monkeypatch.setattr(features, "chunk_bytes", 30 * 3 * 96 * 96 * 4)
    shapes: list[tuple[int, ...]] = []
    prepared = features.prepare(images, detector)
    with torch.inference_mode():
        detector.predict_regions(prepared, images.proposals, lambda pooled: shapes.append(tuple(pooled.shape[:2])))
    assert shapes == [(2, 15), (2, 15), (2, 10)]


@pytest.mark.parametrize("name", ["fast_rcnn", "fast_rcnn scales", "faster_rcnn"])
def test_pooled_regions_are_bounded_and_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many an image has: 20 regions of one map at once, of both images."""
    keys = {"scales": [64, 96]} if name.endswith("scales") else {}
    detector: Any = zoo.build(name.split()[0], **keys).eval()
    images, _ = batch_with_proposals()
    prepared = detector.features.prepare(images, detector)
    with torch.inference_mode():
        expected = detector.predict_regions(prepared, images.proposals)
        monkeypatch.setattr(region_features, "CHUNK_BYTES", 20 * 96 * 4 * 4 * 4)
        shapes: list[tuple[int, ...]] = []
        found = detector.predict_regions(prepared, images.proposals, lambda pooled: shapes.append(tuple(pooled.shape)))
    assert shapes == [(2, 10, 96, 4, 4)] * 4
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.boxes, expected.boxes)


def test_the_regions_of_a_spatial_pyramid_are_bounded() -> None:
    features = PyramidFeatures(FeatureInfo("c5", 8, 16), SpatialPyramidPooling((2, 1), 16, 0.0, 0.0), [96])
    assert [features.chunk_size(images) for images in (1, 8, 10_000)] == [4096, 512, 1]


@pytest.mark.parametrize(("name", "keys"), [("fast_rcnn", {}), ("rcnn", {}), ("sppnet", {"region_nms_iou": 1.0})])
def test_padding_among_the_proposals_is_detected_as_nothing_and_not_traced(name: str, keys: dict[str, Any]) -> None:
    detector = zoo.build(name, **keys).eval()
    images = zoo.sample_images(detector).part(slice(1, 2))
    assert images.proposals is not None
    assert images.proposals.valid[0].tolist() == [True] * 11 + [False]
    with torch.inference_mode():
        trace, predictions = detector.trace(images), detector.predict(images)
    (stored,) = [step for step in trace.steps if isinstance(step, ProposalStep)]
    (pooled,) = [step for step in trace.steps if isinstance(step, PooledStep)]
    assert torch.equal(stored.boxes, images.proposals.boxes[0, :11])
    assert (predictions.scores[0, 11] == -torch.inf).all()
    assert predictions.scores[0, :11].isfinite().all()
    # rows of the predictions, so padding too
    assert len(pooled.regions) == 12
    assert torch.equal(pooled.scores, predictions.scores[0].amax(1))


def test_crops_do_not_see_what_pads_an_image() -> None:
    detector: Any = zoo.build("rcnn").eval()
    images = zoo.sample_images(detector).part(slice(1, 2))
    assert images.proposals is not None
    height, width = images.sizes[0].tolist()
    boxes = torch.tensor([[[width - 30.0, 10, width, 60], [0.0, 0, width, height]]])
    alone = replace(images, pixels=images.pixels[..., :height, :width].contiguous())
    assert alone.pixels.shape != images.pixels.shape
    noise = images.pixels.clone()
    noise[..., width:] = 255
    expected = detector.features.crops(detector.features.prepare(alone, detector), boxes)
    for padded in (images, replace(images, pixels=noise)):
        crops = detector.features.crops(detector.features.prepare(padded, detector), boxes)
        torch.testing.assert_close(crops, expected, atol=1e-2, rtol=0)


def test_images_of_a_batch_have_scales_of_their_own_in_training() -> None:
    torch.manual_seed(0)
    detector: Any = build_detector(tiny_fast_rcnn_config(scales=[32, 64, 96]), ("a", "b"))
    images, _ = batch_with_proposals()
    factors = []
    for _ in range(20):
        (_, factor), *more = detector.features.prepare(images, detector).maps
        assert not more
        factors.append(tuple(factor.tolist()))
    assert {first for first, _ in factors} == {second for _, second in factors} == {0.5, 1.0, 1.5}
    assert any(first != second for first, second in factors)
    levels = [factor.tolist() for _, factor in detector.eval().features.prepare(images, detector).maps]
    assert levels == [[0.5, 0.5], [1.0, 1.0], [1.5, 1.5]]


@pytest.mark.parametrize("first", [2, 3])
def test_the_map_of_stride_16_has_regions_of_the_canonical_scale(first: int) -> None:
    """FPN, equation 1, whichever map is the first."""
    levels = range(first, 6)
    maps = [torch.full((1, 2, 256 >> level, 256 >> level), float(level)) for level in levels]
    info = [FeatureInfo(f"p{level}", 2, 1 << level) for level in levels]
    boxes = torch.tensor([[[0.0, 0, side, side] for side in (6, 27, 29, 55, 57, 111, 113, 200)]])
    expected = [max(first, level) for level in (2, 2, 2, 2, 3, 3, 4, 4)]
    pooled = MapFeatures(info, "align", 2, canonical_scale=112.0).pool(maps, boxes)
    assert pooled[0].mean((1, 2, 3)).tolist() == expected
    assert torch.equal(pooled[0, 6:7], roi_align(maps[4 - first], boxes[:, 6:7], 2, 16, aligned=True)[0])


@pytest.mark.parametrize("kind", ["pool", "align", "align_v1"])
def test_kinds_of_pooling_from_one_map_and_from_several(kind: str) -> None:
    """What a region reads of its map is the same, beside other maps and alone."""
    torch.manual_seed(0)
    fine, coarse = torch.randn(1, 2, 32, 32), torch.randn(1, 2, 16, 16)
    info = [FeatureInfo("p3", 2, 8), FeatureInfo("p4", 2, 16)]
    boxes = torch.tensor([[[10.0, 20, 49, 66], [3.0, 40, 54, 90]]])
    if kind == "pool":
        expected = roi_pool(fine, boxes, 3, 8)
    else:
        expected = roi_align(fine, boxes, 3, 8, aligned=kind == "align")
    torch.testing.assert_close(MapFeatures(info[:1], kind, 3).pool([fine], boxes), expected)
    torch.testing.assert_close(MapFeatures(info, kind, 3).pool([fine, coarse], boxes), expected)


def test_the_scale_that_a_region_is_pooled_at() -> None:
    features = PyramidFeatures(FeatureInfo("c5", 8, 16), SpatialPyramidPooling((2, 1), 16, 0.0, 0.0), [100, 200, 400])
    boxes = torch.tensor([[[0.0, 0, 224, 224], [0, 0, 112, 112], [0, 0, 56, 56], [0, 0, 20, 20]]])
    sizes = torch.tensor([[100, 150]])
    short_sides = features.short_sides(boxes, sizes)
    assert short_sides is not None
    assert short_sides.tolist() == [[100, 200, 400, 400]]
    assert MapFeatures([FeatureInfo("c5", 8, 16)], "pool", 3).short_sides(boxes, sizes) is None


def test_the_heads_columns() -> None:
    """Background is the last column of the softmax; deltas are taken back from mean 0 and deviation 1."""
    torch.manual_seed(0)
    head = RegionHead(torch.nn.Flatten(), 2, 3, 3)
    torch.nn.init.normal_(head.classifier.weight)
    torch.nn.init.normal_(head.regressor.weight)
    head.delta_mean.normal_()
    head.delta_std.uniform_(0.5, 2)
    pooled = torch.randn(2, 5, 2, 3, 3)
    flat = pooled.flatten(2)
    logits = flat @ head.classifier.weight.T
    scores, deltas = head.predict(pooled)
    torch.testing.assert_close(scores, (logits.exp() / logits.exp().sum(-1, keepdim=True))[..., :3])
    raw = (flat @ head.regressor.weight.T).view(2, 5, 3, 4)
    torch.testing.assert_close(deltas, raw * head.delta_std + head.delta_mean)
    for label in range(3):
        back = head.normalise(deltas[:, :, label], torch.full((2, 5), label))
        torch.testing.assert_close(back, raw[:, :, label], atol=1e-5, rtol=1e-5)
    exported_logits, exported_deltas = head.raw(pooled.flatten(0, 1))
    torch.testing.assert_close(exported_logits, logits.flatten(0, 1))
    torch.testing.assert_close(exported_deltas, deltas.flatten(0, 1))


@pytest.mark.parametrize(
    ("fg_iou", "bg_iou", "labels"),
    [
        (0.5, [0.0, 0.5], [0, 0, 0, 1, 1, 1]),
        (0.5, [0.1, 0.5], [0, 0, 0, 1, 1]),
        (0.7, [0.0, 0.5], [0, 0, 1, 1, 1]),
        (0.7, [0.1, 0.65], [0, 0, 1, 1, 1]),
        (0.55, [0.25, 0.5], [0, 0, 0, 1]),
    ],
)
def test_which_regions_are_of_objects_and_which_of_background(
    fg_iou: float, bg_iou: list[float], labels: list[int]
) -> None:
    """Regions that overlap an object by .05, .2, .3, .6 and .8, beside it; between the bounds none is sampled."""
    targets = objects_of([[0.0, 0, 100, 10]])
    widths = torch.tensor([5.0, 20, 30, 60, 80])
    boxes = torch.stack((widths * 0, widths * 0, widths, widths * 0 + 10), -1).unsqueeze(0)
    torch.testing.assert_close(box_iou(targets.boxes, boxes)[0, 0], widths / 100)
    config = tiny_fast_rcnn_config(fg_iou=fg_iou, bg_iou=bg_iou, positive_fraction=0.5)
    sampled = sample_regions(Proposals(boxes, torch.ones(1, 5, dtype=torch.bool)), targets, 1, config)
    assert sorted(sampled.labels[sampled.valid].tolist()) == labels


def test_the_heads_losses() -> None:
    """Cross-entropy of all that is sampled; smooth L1 of normalised deltas of the positives, by a slow loop."""
    torch.manual_seed(0)
    detector: Any = build_detector(tiny_faster_rcnn_config(beta=0.25), ("a", "b"))
    head = detector.head
    assert isinstance(head, RegionHead)
    head.delta_mean.normal_()
    head.delta_std.uniform_(0.5, 2)
    targets = objects_of([[10.0, 20, 40, 50], [50, 10, 70, 40]])
    boxes = targets.boxes[:, [0, 1, 0, 1, 1]] + torch.tensor([[1.0], [2], [3], [4], [5]]) * torch.tensor([1, 0.5, 0, 1])
    matched_gt_index = torch.tensor([[0, 1, -1, -1, 1]])
    labels = torch.tensor([[0, 1, 2, 2, 1]])
    valid = torch.tensor([[True, True, True, False, False]])
    gt_boxes = targets.boxes[:, [0, 1, 0, 0, 1]]
    sampled = SampledRegions(boxes, labels, gt_boxes, matched_gt_index, valid)
    pooled = torch.randn(1, 5, *detector.features.shape)
    losses = head.losses(pooled, sampled)
    logits, deltas = head(pooled)
    expected = [0.0, 0.0]
    for row in range(3):
        expected[0] -= logits[0, row].log_softmax(0)[labels[0, row]].item() / 3
        if row < 2:
            delta = head.coder.encode(gt_boxes[0, row], boxes[0, row])
            difference = (deltas[0, row, row] - (delta - head.delta_mean[row]) / head.delta_std[row]).abs()
            smooth = torch.where(difference < 0.25, difference**2 / 0.5, difference - 0.125)
            expected[1] += smooth.sum().item() / 3
    assert losses["classification"].item() == pytest.approx(expected[0], rel=1e-4)
    assert losses["box"].item() == pytest.approx(expected[1], rel=1e-4)
