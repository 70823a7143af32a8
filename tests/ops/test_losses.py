import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection.ssd import SSD
from torchvision.ops import sigmoid_focal_loss

from detkit import ops
from tests.builders import SSD300
from tests.ops import reference
from tests.ops.reference import random_boxes

CODER = ops.BoxCoder((10, 10, 5, 5))


@given(st.integers(0, 10**6), st.integers(0, 20), st.sampled_from([0.0, 1.0, 2.5, 3.0]), st.booleans())
@settings(max_examples=60)
def test_hard_negatives_equal_the_loop(seed: int, anchors: int, ratio: float, tied: bool) -> None:
    torch.manual_seed(seed)
    loss = torch.rand(3, anchors)
    loss = (loss * 3).round() if tied else loss
    positive = torch.rand(3, anchors) < 0.2
    candidates = ~positive & (torch.rand(3, anchors) < 0.7)
    mask = ops.hard_negative_mask(loss, positive, candidates, ratio)
    for i in range(3):
        wanted = reference.hard_negatives(loss[i].tolist(), positive[i].tolist(), candidates[i].tolist(), ratio)
        assert mask[i].tolist() == wanted


def test_smooth_l1() -> None:
    d = torch.tensor([-3.0, -0.5, 0.0, 0.05, 2.0])
    assert ops.smooth_l1(d, torch.zeros(5)).tolist() == pytest.approx([2.5, 0.125, 0, 0.00125, 1.5])
    # sigma 3 of Faster R-CNN: .5 * (3 d)^2 where |d| < 1 / 9, else |d| - .5 / 9
    sigma = ops.smooth_l1(d, torch.zeros(5), beta=1 / 9)
    assert sigma.tolist() == pytest.approx([3 - 0.5 / 9, 0.5 - 0.5 / 9, 0, 0.5 * 0.15**2, 2 - 0.5 / 9])
    assert ops.smooth_l1(d.half(), d).dtype == torch.float32


def scene(batch: int = 3, count: int = 4, anchors: int = 200, classes: int = 5) -> dict[str, Tensor]:
    valid = torch.rand(batch, count) < 0.8
    return {
        "logits": torch.randn(batch, anchors, classes + 1),
        "deltas": torch.randn(batch, anchors, 4),
        "boxes": random_boxes(batch, count) * valid.unsqueeze(-1),
        "labels": torch.where(valid, torch.randint(0, classes, (batch, count)), -1),
        "anchors": random_boxes(anchors) + torch.tensor([0.0, 0, 1, 1]),
    }


def loss_of(s: dict[str, Tensor], ignore: Tensor | None = None, ratio: float = 3.0) -> dict[str, Tensor]:
    match = ops.match_ssd(s["boxes"], s["labels"] >= 0, ignore, s["anchors"])
    return ops.multibox_loss(s["logits"], s["deltas"], match, s["boxes"], s["labels"], s["anchors"], CODER, ratio=ratio)


def slow_loss(s: dict[str, Tensor], ignore: Tensor) -> tuple[float, float]:
    """Equation 1 of SSD, image by image and box by box, in float64."""
    classification = box = positives = 0.0
    background = s["logits"].shape[-1] - 1
    overlap = ops.box_iou(s["boxes"], s["anchors"]).double()
    for i in range(len(s["logits"])):
        index, _ = reference.match_ssd(overlap[i], s["labels"][i] >= 0, ignore[i], 0.5)
        entropy = []
        for a, n in enumerate(index):
            logits = s["logits"][i, a].double()
            target = int(s["labels"][i, n]) if n >= 0 else background
            entropy.append(float(logits.logsumexp(0) - logits[target]))
        hard = reference.hard_negatives(entropy, [n >= 0 for n in index], [n == -1 for n in index], 3)
        for a, n in enumerate(index):
            if n >= 0 or hard[a]:
                classification += entropy[a]
            if n >= 0:
                positives += 1
                (x1, y1, x2, y2), (u1, v1, u2, v2) = s["boxes"][i, n].tolist(), s["anchors"][a].tolist()
                wanted = [
                    10 * ((x1 + x2) / 2 - (u1 + u2) / 2) / (u2 - u1),
                    10 * ((y1 + y2) / 2 - (v1 + v2) / 2) / (v2 - v1),
                    5 * math.log((x2 - x1) / (u2 - u1)),
                    5 * math.log((y2 - y1) / (v2 - v1)),
                ]
                for got, want in zip(s["deltas"][i, a].tolist(), wanted):
                    d = abs(got - want)
                    box += 0.5 * d * d if d < 1 else d - 0.5
    return classification / max(1.0, positives), box / max(1.0, positives)


@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_multibox_loss_equals_the_slow_loop(ignored: float, device: torch.device) -> None:
    s = scene()
    ignore = torch.rand(s["labels"].shape) < ignored
    losses = loss_of({k: v.to(device) for k, v in s.items()}, ignore.to(device))
    assert (losses["classification"].item(), losses["box"].item()) == pytest.approx(slow_loss(s, ignore), rel=1e-5)


def test_multibox_loss_equals_torchvision() -> None:
    """Same matches, same loss; torchvision keeps the background first."""
    anchors, classes = ops.default_boxes(**SSD300), 20
    boxes = torch.tensor([[[10.0, 10, 60, 80], [200, 150, 290, 290]], [[100, 20, 230, 140], [5, 5, 290, 290]]])
    labels = torch.tensor([[3, 7], [19, 0]])
    logits, deltas = torch.randn(2, len(anchors), classes + 1), torch.randn(2, len(anchors), 4)
    match = ops.match_ssd(boxes, labels >= 0, None, anchors)
    mine = ops.multibox_loss(logits, deltas, match, boxes, labels, anchors, CODER)

    ssd = SSD.__new__(SSD)
    torch.nn.Module.__init__(ssd)
    ssd.neg_to_pos_ratio, ssd.box_coder = 3, ops_coder()
    targets = [{"boxes": b, "labels": n + 1} for b, n in zip(boxes, labels)]
    outputs = {"cls_logits": logits.roll(1, -1), "bbox_regression": deltas}
    theirs = SSD.compute_loss(ssd, targets, outputs, [anchors, anchors], list(match.index.clamp(min=-1)))
    torch.testing.assert_close(mine["classification"], theirs["classification"])
    torch.testing.assert_close(mine["box"], theirs["bbox_regression"])


def ops_coder():
    from torchvision.models.detection._utils import BoxCoder

    return BoxCoder((10.0, 10.0, 5.0, 5.0))


def backward(s: dict[str, Tensor], losses: dict[str, Tensor]) -> None:
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values(), torch.zeros(())).backward()
    for key in ("logits", "deltas"):
        gradient = s[key].grad
        assert gradient is not None
        assert gradient.isfinite().all()


@pytest.mark.parametrize("case", ["no objects", "no columns", "only ignored", "empty batch", "no area"])
def test_finite_and_connected_without_positives(case: str) -> None:
    s, ignore = scene(), None
    if case == "no objects":
        s["labels"].fill_(-1)
    elif case == "no columns":
        s["labels"], s["boxes"] = s["labels"][:, :0], s["boxes"][:, :0]
    elif case == "only ignored":
        ignore = torch.ones_like(s["labels"], dtype=torch.bool)
    elif case == "empty batch":
        s = {k: v if k == "anchors" else v[:0] for k, v in s.items()}
    else:
        s["boxes"][..., 2:] = s["boxes"][..., :2]
    for k in ("logits", "deltas"):
        s[k].requires_grad_()
    losses = loss_of(s, ignore)
    backward(s, losses)
    assert losses["classification"] == losses["box"] == 0


def test_only_counted_boxes_get_a_gradient() -> None:
    s = scene()
    s["logits"].requires_grad_()
    s["deltas"].requires_grad_()
    losses = loss_of(s)
    backward(s, losses)
    assert s["logits"].grad is not None
    assert s["deltas"].grad is not None
    match = ops.match_ssd(s["boxes"], s["labels"] >= 0, None, s["anchors"])
    positive = match.index >= 0
    assert torch.equal((s["deltas"].grad != 0).any(-1), positive)
    assert torch.equal((s["logits"].grad != 0).any(-1).sum(1), (4 * positive.sum(1)).clamp(max=200))


def test_loss_of_a_batch_is_the_mean_over_its_positives() -> None:
    s = scene()
    ones = [{k: v if k == "anchors" else v[i : i + 1] for k, v in s.items()} for i in range(3)]
    counts = [
        max(1, int((ops.match_ssd(o["boxes"], o["labels"] >= 0, None, o["anchors"]).index >= 0).sum())) for o in ones
    ]
    for key, value in loss_of(s).items():
        torch.testing.assert_close(value, sum(loss_of(o)[key] * n for o, n in zip(ones, counts)) / sum(counts))


def test_autocast_computes_in_float32() -> None:
    s = scene()
    plain = loss_of(s)
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss_of(s)
    assert all(cast[k].dtype == torch.float32 and cast[k] == plain[k] for k in plain)
    s["logits"], s["deltas"] = s["logits"].half() * 1000, s["deltas"].half() * 1000
    assert all(value.isfinite() for value in loss_of(s).values())


def test_not_a_number_is_not_hidden() -> None:
    s = scene()
    s["logits"][0, :, 0] = torch.nan
    assert loss_of(s)["classification"].isnan()


def test_world_mean_of_one_process() -> None:
    assert ops.world_mean(torch.tensor(5)) == 5
    assert ops.world_mean(torch.tensor(0), min_total=1.0) == 1


def _share(rank: int, folder: str, scenes: list[dict[str, Tensor]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    parts = [{k: v if k == "anchors" else v[2 * rank : 2 * rank + 2] for k, v in s.items()} for s in scenes]
    torch.save(
        [[loss_of(part) for part in parts], ops.world_mean(torch.tensor(rank), min_total=4.0)], f"{folder}/{rank}"
    )
    torch.distributed.destroy_process_group()


def test_two_processes_average_to_one_with_the_whole_batch(tmp_path: Path) -> None:
    some, none = scene(batch=4), scene(batch=4)
    some["labels"][:2] = -1  # the first process has no objects
    none["labels"][:] = -1
    torch.multiprocessing.spawn(_share, (str(tmp_path), [some, none]), nprocs=2)
    (first, least), (second, _) = (torch.load(tmp_path / str(rank)) for rank in range(2))
    for a, b, s in zip(first, second, (some, none)):
        for key, value in loss_of(s).items():
            torch.testing.assert_close((a[key] + b[key]) / 2, value)
    assert least == 2  # the sum 0 + 1 counts as 4


def test_entropy_alone_when_all_are_positive() -> None:
    """No negatives to find: the loss is the plain cross-entropy of the matched boxes."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    labels, logits = torch.tensor([[1, 0]]), torch.randn(1, 2, 3)
    match = ops.match_ssd(anchors.unsqueeze(0), labels >= 0, None, anchors)
    losses = ops.multibox_loss(logits, torch.zeros(1, 2, 4), match, anchors.unsqueeze(0), labels, anchors, CODER)
    torch.testing.assert_close(losses["classification"], F.cross_entropy(logits[0], labels[0]))
    assert losses["box"] == 0


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.75, 0.5), (0.25, 5.0)])
def test_focal_loss_and_its_gradient_equal_the_formula(alpha: float, gamma: float) -> None:
    """Equation 5 in float64, torchvision's where scores are moderate, and finite at the end of float32."""
    logits, positive = torch.randn(50, 4) * 4, torch.rand(50, 4) < 0.3
    logits.requires_grad_()
    loss = ops.focal_loss(logits, positive, alpha, gamma)
    for x, is_positive, value, gradient in zip(
        *(part.flatten().tolist() for part in (logits, positive, loss, torch.autograd.grad(loss.sum(), logits)[0]))
    ):
        p = 1 / (1 + math.exp(-x))
        right, weight, sign = (p, alpha, 1) if is_positive else (1 - p, 1 - alpha, -1)
        assert value == pytest.approx(-weight * (1 - right) ** gamma * math.log(right), rel=1e-4, abs=1e-9)
        # appendix B
        slope = weight * sign * (1 - right) ** gamma * (gamma * right * math.log(right) + right - 1)
        assert gradient == pytest.approx(slope, rel=1e-3, abs=1e-8)
    theirs = sigmoid_focal_loss(logits, positive.float(), alpha, gamma)
    torch.testing.assert_close(loss, theirs, rtol=1e-4, atol=1e-6)
    extreme = torch.tensor([-1e4, -200.0, -100.0, 0.0, 100.0, 200.0, 1e4], requires_grad=True)
    for certain in (True, False):
        loss = ops.focal_loss(extreme, torch.full((7,), certain), alpha, gamma)
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), extreme)[0].isfinite().all()
    assert ops.focal_loss(logits.half(), positive).dtype == torch.float32


def slow_retinanet_loss(s: dict[str, Tensor], index: list[list[int]], beta: float) -> tuple[float, float]:
    """Section 4.1, image by image, anchor by anchor and class by class, in float64."""
    classification = box = 0.0
    for i, owners in enumerate(index):
        focal = regression = 0.0
        for a, n in enumerate(owners):
            if n == ops.IGNORED:
                continue
            label = int(s["labels"][i, n]) if n >= 0 else -1
            for c, x in enumerate(s["logits"][i, a].tolist()):
                p = 1 / (1 + math.exp(-x))
                focal -= 0.25 * (1 - p) ** 2 * math.log(p) if c == label else 0.75 * p**2 * math.log(1 - p)
            if n >= 0:
                (x1, y1, x2, y2), (u1, v1, u2, v2) = s["boxes"][i, n].tolist(), s["anchors"][a].tolist()
                wanted = [
                    ((x1 + x2) / 2 - (u1 + u2) / 2) / (u2 - u1),
                    ((y1 + y2) / 2 - (v1 + v2) / 2) / (v2 - v1),
                    math.log((x2 - x1) / (u2 - u1)),
                    math.log((y2 - y1) / (v2 - v1)),
                ]
                for got, want in zip(s["deltas"][i, a].tolist(), wanted):
                    d = abs(got - want)
                    regression += 0.5 * d * d / beta if d < beta else d - beta / 2
        positives = max(1, sum(n >= 0 for n in owners))
        classification += focal / positives / len(index)
        box += regression / positives / len(index)
    return classification, box


@pytest.mark.parametrize("beta", [0.11, 0.0])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_retinanets_loss_equals_the_slow_loop(ignored: float, beta: float, device: torch.device) -> None:
    s = scene()
    s["labels"][2] = -1  # an image without objects
    coder = ops.BoxCoder((1, 1, 1, 1))
    valid, ignore = s["labels"] >= 0, torch.rand(s["labels"].shape) < ignored
    match = ops.match_rpn(s["boxes"], valid, ignore, s["anchors"], fg_iou=0.5, bg_iou=0.4)
    every = torch.ones(3, len(s["anchors"]), dtype=torch.bool)
    assert torch.equal(match.index, ops.match_rpn(s["boxes"], valid, ignore, s["anchors"], every, 0.5, 0.4).index)
    assert {ops.IGNORED, ops.BACKGROUND} < set(match.index.unique().tolist())
    moved = {key: value.to(device) for key, value in s.items()}
    match = ops.Match(match.index.to(device), match.iou.to(device))
    outputs = (moved["logits"], moved["deltas"], match, moved["boxes"], moved["labels"], moved["anchors"], coder)
    losses = ops.retinanet_loss(*outputs, beta=beta)
    wanted = slow_retinanet_loss(s, match.index.tolist(), beta)
    assert (losses["classification"].item(), losses["box"].item()) == pytest.approx(wanted, rel=1e-4)
