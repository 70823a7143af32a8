"""What the detectors tell of themselves: traces and operations."""

from typing import Any

import pytest
import torch
from torch import Tensor

from detkit.backbones.describe import count_flops
from detkit.models import Detector, rpn
from detkit.models.region import SampledRegions
from detkit.models.trace import (
    AnchorChoiceStep,
    AnchorStep,
    FocalStep,
    GridStep,
    MapStep,
    MaskStep,
    ObjectnessStep,
    PooledStep,
    PositionStep,
    ProposalNMSStep,
    ProposalStep,
    RegressionStep,
    ResponsibleStep,
    SampleStep,
    Step,
    Trace,
)
from detkit.ops import IGNORED
from detkit.ops.kmeans import shape_iou
from detkit.structures import Images, Targets
from tests import zoo
from tests.models.cases import CASES, build

REGION = ("fast_rcnn", "fast_rcnn scales", "faster_rcnn", "faster_rcnn fpn", "mask_rcnn", "rcnn", "sppnet")
REGION_STEPS = [PooledStep, RegressionStep]
RPN_STEPS = [AnchorStep, ObjectnessStep, ProposalNMSStep, *REGION_STEPS]
STEPS: dict[str, list[type[Step]]] = {
    "fast_rcnn": [ProposalStep, *REGION_STEPS],
    "fast_rcnn scales": [ProposalStep, *REGION_STEPS],
    "faster_rcnn": RPN_STEPS,
    "faster_rcnn fpn": RPN_STEPS,
    "mask_rcnn": [*RPN_STEPS, MaskStep],
    "rfcn": [AnchorStep, ObjectnessStep, ProposalNMSStep, PositionStep, RegressionStep],
    "rcnn": [ProposalStep, *REGION_STEPS],
    "retinanet": [AnchorStep, MapStep],
    "sppnet": [ProposalStep, *REGION_STEPS],
    "ssd": [AnchorStep, MapStep],
    "torchvision_ssd": [],
    "yolov1": [GridStep],
    "yolov2": [AnchorStep, MapStep],
    "yolov3": [AnchorStep, MapStep],
}


def one_image(detector: Detector) -> tuple[Images, Targets]:
    """Return the first image of the zoo's batch, with its two objects."""
    targets = zoo.some_objects(detector)
    images = zoo.sample_images(detector, around=targets).part(slice(0, 1))
    return images, Targets(targets.boxes[:1], targets.labels[:1], targets.ignore[:1])


def step_of(trace: Trace, kind: type, name: str | None = None) -> Any:
    steps: list[Any] = [step for step in trace.steps if isinstance(step, kind)]
    (step,) = [step for step in steps if name is None or step.name == name]
    return step


def rows_of(tensor: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in tensor.tolist()}


@pytest.mark.parametrize("case", CASES)
def test_a_trace_has_the_predictions_and_the_steps_that_led_to_them(case: str) -> None:
    detector = build(case)
    images, _ = one_image(detector)
    with torch.inference_mode():
        trace, expected = detector.trace(images), detector.predict(images)
    assert [type(step) for step in trace.steps] == STEPS[case]
    assert torch.equal(trace.predictions.boxes, expected.boxes)
    assert torch.equal(trace.predictions.scores, expected.scores)
    predicted = expected.scores.shape[1]
    for step in trace.steps:
        check_step(step, predicted, images)


def check_step(step: Step, predicted: int, images: Images) -> None:
    """Check shapes, that boxes are boxes, and that those that were clipped are inside the image."""
    height, width = images.sizes[0].tolist()
    limit = torch.tensor([width, height, width, height])
    match step:
        case AnchorStep(boxes=boxes, maps=maps):
            assert len(boxes) == len(maps)
            for anchors, shape in zip(boxes, maps):
                assert (anchors[:, 2:] > anchors[:, :2]).all()
                assert len(anchors) % (shape.rows * shape.columns) == 0
                centres = (anchors[:, :2] + anchors[:, 2:]) / 2
                # images are padded, so that maps may be larger than they are
                extent = torch.tensor([shape.columns * shape.cell_width, shape.rows * shape.cell_height])
                begin = torch.tensor([shape.left, shape.top])
                assert ((centres >= begin) & (centres <= begin + extent)).all()
                assert (begin <= 0).all()
                assert (begin + extent >= limit[:2]).all()
        case MapStep(level=level, maps=maps):
            assert level.shape == (predicted,)
            assert set(level.tolist()) == set(range(len(maps)))
        case GridStep(grid=grid, boxes=boxes, confidence=confidence, classes=classes):
            assert len(boxes) == len(confidence) == len(classes) == grid**2
            assert boxes.flatten(0, 1).shape == (predicted, 4)
        case ObjectnessStep(scores=scores, maps=maps):
            assert len(scores) == len(maps)
            assert all(((values >= 0) & (values <= 1)).all() for values in scores)
        case ProposalNMSStep(boxes=boxes, logits=logits, levels=levels):
            assert len(boxes) == len(logits) == len(levels) > 0
            assert ((boxes >= 0) & (boxes <= limit)).all()
        case ProposalStep(boxes=boxes):
            assert ((boxes >= 0) & (boxes <= limit)).all()
            assert len(boxes) == predicted
        case PooledStep(regions=regions, pooled=pooled, crop=crop):
            assert regions.shape == (predicted, 4)
            assert all(len(level) == predicted and level.shape[1] == level.shape[2] for level in pooled)
            crops = None if crop is None else crop(torch.tensor([0, predicted - 1]))
            if crops is not None:
                assert (len(crops), crops.ndim) == (2, 4)
                assert 3 in crops.shape[1:]
                assert ((crops >= 0) & (crops <= 255)).all()
        case PositionStep(regions=regions, scores=scores, parts=parts):
            assert regions.shape == (predicted, 4)
            maps, pooled = parts(predicted - 1, 1)
            assert maps.shape[:2] == pooled.shape == (3, 3)
            assert scores.shape == (predicted, 2)
        case MaskStep(scores=scores, of_boxes=of_boxes):
            assert scores.shape == (predicted, 2)
            masks = of_boxes(torch.tensor([[4.0, 6, 60, 50], [0, 0, 20, 30], [2, 2, 3, 3]]))
            assert masks.shape == (3, 2, 8, 8)
            assert ((masks > 0) & (masks < 1)).all()
        case RegressionStep(regions=regions):
            assert regions.shape == (predicted, 4)
            assert ((regions >= 0) & (regions <= limit)).all()
        case _:
            raise AssertionError(step)


def test_ssds_samples_are_the_boxes_that_its_loss_has_a_gradient_for() -> None:
    detector: Any = build("ssd")
    images, targets = one_image(detector)
    step = step_of(detector.trace(images, targets), SampleStep)
    logits, deltas = (x.detach().requires_grad_() for x in detector.network(detector.normalise(images.pixels)))
    match = detector.assign(None, targets)
    losses = detector.loss((logits, deltas), match, targets)
    by_class, by_box = torch.autograd.grad(torch.stack(list(losses.values())).sum(), (logits, deltas))
    trained = by_class[0].abs().sum(1) > 0
    assert torch.equal(step.boxes, detector.anchors[trained])
    assert torch.equal(step.matched_gt_index, match.index[0][trained])
    # deltas are trained on the matched boxes alone
    assert rows_of(step.boxes[step.matched_gt_index >= 0]) == rows_of(detector.anchors[match.index[0] >= 0])
    assert not by_box[0][match.index[0] < 0].any()
    sides = torch.tensor(detector.sides).square() * torch.tensor(detector.boxes_per_cell)
    assert torch.equal(step.level, torch.arange(len(sides)).repeat_interleave(sides)[trained])


@pytest.mark.parametrize("gamma", [2.0, 0.0])
def test_retinanets_focal_weights_are_those_of_its_loss(gamma: float) -> None:
    detector: Any = zoo.build("retinanet", gamma=gamma).eval()
    with torch.no_grad():
        detector.classifier.last.weight.mul_(100)
    images, targets = one_image(detector)
    step = step_of(trace := detector.trace(images, targets), FocalStep)
    raw = detector.network(detector.normalise(images.pixels, images.sizes))
    logits, deltas = ([x.detach().requires_grad_() for x in part] for part in (raw.logits, raw.deltas))
    match = detector.assign(raw, targets)
    losses = detector.loss(raw._replace(logits=logits, deltas=deltas), match, targets)
    losses["classification"].backward()
    count = int(step.positive.sum())
    assert step.focal.sum().item() / count == pytest.approx(losses["classification"].item(), rel=1e-4)
    trained = torch.cat(logits_gradients(logits), 1)[0].abs().sum(1) > 0
    assert torch.equal(step.focal > 0, trained)
    assert torch.equal(step.positive, match.index[0] >= 0)
    assert torch.equal(step.entropy > 0, match.index[0] != IGNORED)
    assert (match.index[0] == IGNORED).any()
    assert (step.focal <= step.entropy).all()
    assert torch.equal(step.focal, step.entropy) == (gamma == 0)
    assert [int((step.level == level).sum()) for level in range(5)] == [len(x) for x in raw.anchors]
    learned = step_of(trace, SampleStep)
    assert torch.equal(learned.boxes, torch.cat(raw.anchors)[step.positive])
    assert torch.equal(learned.level, step.level[step.positive])


@pytest.mark.parametrize("name", ["yolov2", "yolov3"])
@pytest.mark.parametrize("ignore_iou", [0.1, 0.3])
def test_choices_are_the_anchors_that_the_loss_has_a_gradient_for(name: str, ignore_iou: float) -> None:
    detector: Any = zoo.build(name, ignore_iou=ignore_iou).eval()
    images, targets = one_image(detector)
    step = step_of(detector.trace(images, targets), AnchorChoiceStep)
    raw = detector.compute(images.pixels, images.sizes)
    values = raw.raw.detach().requires_grad_()
    losses = detector.loss(raw._replace(raw=values), detector.assign(raw, targets), targets)
    (gradient,) = torch.autograd.grad(losses["centre"] + losses["side"], values, retain_graph=True)
    learned = (gradient[0].abs().sum(-1) > 0).nonzero().flatten().tolist()
    assert sorted(step.place[step.place >= 0].tolist()) == learned
    assert len(learned) == 2
    (gradient,) = torch.autograd.grad(losses["no_object"], values)
    silent = gradient[0, :, 4] == 0
    silent[learned] = False
    assert torch.equal(step.left_out, silent)
    assert step.left_out.any()
    assert step.ignore_iou == ignore_iou
    for index, place in enumerate(step.place.amax(0).tolist()):
        sides = step.boxes[place, 2:] - step.boxes[place, :2]
        assert torch.equal(sides, step.anchors[shape_iou(step.sides[index : index + 1], step.anchors).argmax()])
        distance = (
            step.boxes[place, :2] + step.boxes[place, 2:] - targets.boxes[0, index, :2] - targets.boxes[0, index, 2:]
        ) / 2
        level = int((step.place[:, index] >= 0).nonzero())
        assert (distance.abs() <= step.maps[level].cell_width / 2).all()  # in the same cell


def logits_gradients(logits: list[Tensor]) -> list[Tensor]:
    return [x.grad for x in logits if x.grad is not None]


def test_the_map_of_a_prediction_is_that_of_its_anchor() -> None:
    """Where only the best of each map are decoded."""
    detector: Any = zoo.build("retinanet", pre_nms_top_n=20).eval()
    with torch.no_grad():
        detector.regressor.last.weight.zero_()
    images, _ = one_image(detector)
    trace = detector.trace(images)
    anchors, levels = step_of(trace, AnchorStep), step_of(trace, MapStep).level
    assert trace.predictions.scores.shape[1] == len(levels) == 4 * 20 + 9
    for box, level in zip(trace.predictions.boxes[0], levels.tolist()):
        assert (anchors.boxes[level] - box).abs().amax(1).min() < 1e-3


def test_yolos_responsible_boxes_are_those_that_its_loss_has_a_gradient_for() -> None:
    detector: Any = build("yolov1")
    images, targets = one_image(detector)
    step = step_of(detector.trace(images, targets), ResponsibleStep)
    cells = detector.network(detector.normalise(images.pixels))
    boxes = cells.boxes.detach().requires_grad_()
    losses = detector.loss(cells._replace(boxes=boxes), detector.assign(None, targets), targets)
    (gradient,) = torch.autograd.grad(losses["centre"] + losses["side"], boxes)
    assert torch.equal(step.responsible, gradient[0].abs().sum(-1) > 0)
    assert sorted(step.matched_gt_index[step.matched_gt_index >= 0].tolist()) == [0, 1]
    assert torch.equal(step.responsible.any(1), step.matched_gt_index >= 0)


@pytest.mark.parametrize("case", REGION)
def test_sampled_regions_are_those_that_the_head_is_trained_on(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector: Any = build(case)
    images, targets = one_image(detector)
    targets = zoo.with_masks(detector, targets)
    seen: list[SampledRegions] = []
    losses = detector.head.losses

    def watch(pooled: Tensor, sampled: SampledRegions) -> dict[str, Tensor]:
        seen.append(sampled)
        return losses(pooled, sampled)

    monkeypatch.setattr(detector.head, "losses", watch)
    torch.manual_seed(3)
    detector.losses(images, targets)
    torch.manual_seed(3)
    step = step_of(detector.trace(images, targets), SampleStep, "regions")
    (sampled,) = seen
    valid = sampled.valid[0]
    assert valid.any()
    assert torch.equal(step.boxes, sampled.boxes[0][valid])
    assert torch.equal(step.matched_gt_index, sampled.matched_gt_index[0][valid])
    assert set(step.matched_gt_index[step.matched_gt_index >= 0].tolist()) in ({0}, {1}, {0, 1})


@pytest.mark.parametrize("case", ["faster_rcnn", "faster_rcnn fpn"])
def test_sampled_anchors_are_those_that_the_rpn_is_trained_on(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector: Any = build(case)
    images, targets = one_image(detector)
    seen: list[tuple[Tensor, Tensor]] = []
    loss = rpn.rpn_loss

    def watch(logits: Tensor, *arguments: Any) -> dict[str, Tensor]:
        logits = logits.detach().requires_grad_()
        losses = loss(logits, *arguments)
        (gradient,) = torch.autograd.grad(losses["objectness"], logits)
        seen.append((gradient[0] != 0, torch.cat(detector.rpn(detector.features.prepare(images, detector)).anchors)))
        return losses

    monkeypatch.setattr(rpn, "rpn_loss", watch)
    torch.manual_seed(3)
    detector.losses(images, targets)
    torch.manual_seed(3)
    step = step_of(detector.trace(images, targets), SampleStep, "anchor-matching")
    ((trained, anchors),) = seen
    assert trained.any()
    assert rows_of(step.boxes) == rows_of(anchors[trained])


@pytest.mark.parametrize("case", ["faster_rcnn", "faster_rcnn fpn"])
def test_a_trace_with_objects_has_the_proposals_of_a_prediction(case: str) -> None:
    """As many as in testing, though the steps of training are shown beside them."""
    detector: Any = build(case)
    images, targets = one_image(detector)
    step = step_of(detector.trace(images, targets), ProposalNMSStep)
    assert (step.pre_nms_top_n, step.post_nms_top_n) == (60, 12) == detector.rpn.top_n(training=False)
    expected = step_of(detector.trace(images), ProposalNMSStep)
    assert torch.equal(step.boxes, expected.boxes)
    assert torch.equal(step.logits, expected.logits)
    # those that are too small are no candidates; of a single map they go first, and others take their places
    shorter = (step.boxes[:, 2:] - step.boxes[:, :2]).amin(1)
    detector.config.min_size = shorter.median().item() + 0.01
    large = step_of(detector.trace(images), ProposalNMSStep)
    kept = step.boxes[shorter >= detector.config.min_size]
    assert 0 < len(kept) < len(step.boxes)
    assert len(large.boxes) == (60 if case == "faster_rcnn" else len(kept))
    assert torch.equal(large.boxes[: len(kept)], kept)


@pytest.mark.parametrize("case", CASES)
def test_operations_are_those_of_a_prediction(case: str) -> None:
    detector = build(case)
    images, _ = one_image(detector)
    flops = detector.flops(*zoo.side(detector))
    if detector.config.name == "torchvision_ssd":
        assert flops is None
        return
    assert flops is not None
    assert (flops.region is not None) == (detector.kind == "region")
    regions = detector.predict(images).scores.shape[1]
    counted = count_flops(lambda: detector.predict(images))
    # the NMS of proposals multiplies matrices too, which is no part of the network
    suppresses = detector.proposal_settings() is not None or hasattr(detector.config, "region_nms_iou")
    nms = 1e-3 * counted if suppresses else 0
    assert counted > 0
    assert flops.image + (flops.region or 0) * regions == pytest.approx(counted, rel=0, abs=nms)


@pytest.mark.parametrize("case", CASES)
def test_raw_outputs_are_tensors_of_the_batch(case: str) -> None:
    detector = build(case)
    images = zoo.sample_images(detector)
    outputs = detector.raw_outputs(images)
    assert outputs
    assert all(len(x) == 2 and x.isfinite().all() for x in outputs)
    assert not torch.equal(outputs[0][0], outputs[0][1])
