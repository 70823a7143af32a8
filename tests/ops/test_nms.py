import math
import sys

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detkit import ops
from tests.ops.reference import greedy_nms, iou, random_boxes

module = sys.modules["detkit.ops.nms"]  # the package's name `nms` is the function
ALL = 10**9


def lists(out: Tensor) -> list[list[int]]:
    """Rows without their padding, which must come last."""
    rows = []
    for row in out.tolist():
        kept = [i for i in row if i >= 0]
        assert row == kept + [-1] * (len(row) - len(kept))
        rows.append(kept)
    return rows


def by_torchvision(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> list[int]:
    """One image, a call for each class."""
    kept = []
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        kept += members[torchvision.ops.nms(boxes[members], scores[members], iou)].tolist()
    return sorted(kept, key=lambda i: (-float(scores[i]), i))


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.45, 0.7, 1.0])
@pytest.mark.parametrize("count", [1, 50, 700])
def test_equals_torchvision_class_by_class(iou: float, count: int, device: torch.device) -> None:
    boxes, scores = random_boxes(3, count).to(device), torch.rand(3, count, device=device)
    labels = torch.randint(0, 3, (3, count), device=device)
    out = ops.nms(boxes, scores, labels, iou=iou, top_k=ALL, max_out=count)
    assert out.dtype == torch.int64
    assert lists(out) == [by_torchvision(*one, iou) for one in zip(boxes, scores, labels)]


def test_equals_torchvision_without_labels_over_several_blocks() -> None:
    boxes, scores = random_boxes(2, 3000, size=500), torch.randn(2, 3000)
    out = ops.nms(boxes, scores, iou=0.5, top_k=ALL, max_out=3000)
    assert lists(out) == [torchvision.ops.nms(*one, 0.5).tolist() for one in zip(boxes, scores)]


@given(
    st.integers(0, 10**6),
    st.integers(0, 40),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([1, 3, ALL]),
    st.sampled_from([1, 5, 60]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([2, 5, 64]),
)
@settings(max_examples=150)
def test_equals_the_greedy_loop(
    seed: int, count: int, iou: float, top_k: int, max_out: int, labelled: bool, masked: bool, block: int
) -> None:
    """On a grid, where scores and IoUs tie, with every kind of odd score, in blocks and pieces of any size."""
    torch.manual_seed(seed)
    boxes, scores = random_boxes(3, count, size=30, side=30, grid=5), (torch.randn(3, count) * 2).round() / 2
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0])[torch.randint(0, 5, (3, count))]
    scores = torch.where(torch.rand(3, count) < 0.3, odd, scores)
    boxes[torch.rand(3, count) < 0.05, 2] = [math.nan, math.inf][seed % 2]
    labels = torch.randint(-1, 3, (3, count)) if labelled else None
    valid = torch.rand(3, count) < 0.8 if masked else None
    score = -0.5 if seed % 3 == 0 else -math.inf
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CPU_BLOCK", block)
        patch.setattr(module, "CPU_PAIRS", block * 10)
        patch.setattr(module, "CPU_LOOP", seed % 5 * 5)  # longer ones in blocks
        patch.setattr(module, "CPU_FIRST", 1 + seed % 2)
        out = ops.nms(boxes, scores, labels, iou=iou, top_k=top_k, max_out=max_out, score=score, valid=valid)
    assert out.shape == (3, max_out)
    for i, kept in enumerate(lists(out)):
        own = (boxes[i], scores[i], None if labels is None else labels[i])
        rest = {"score": score, "valid": None if valid is None else valid[i]}
        assert kept == greedy_nms(*own, threshold=iou, top_k=top_k, max_out=max_out, **rest)


@given(st.integers(0, 10**6), st.sampled_from([1, 4, ALL]), st.booleans(), st.sampled_from([-math.inf, 0.0]))
@settings(max_examples=60)
def test_dense_equals_flat(seed: int, top_k: int, per_class: bool, score: float) -> None:
    torch.manual_seed(seed)
    boxes = random_boxes(2, 30, 4, grid=10) if per_class else random_boxes(2, 30, grid=10)
    scores = (torch.randn(2, 30, 4) * 2).round() / 2  # many ties, at the cut of top_k too
    scores[torch.rand(2, 30, 4) < 0.1] = math.nan
    scores[1, :, 1:] -= 3 * (seed % 2)  # the images differ in how many candidates they have
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CPU_FIRST", 1)  # which is too few in some
        index, label = ops.nms_dense(boxes, scores, iou=0.4, top_k=top_k, max_out=25, score=score)
    flat = boxes if per_class else boxes.unsqueeze(2).expand(-1, -1, 4, -1)
    labels = torch.arange(4).expand(2, 30, 4).reshape(2, -1)
    out = ops.nms(flat.reshape(2, -1, 4), scores.flatten(1), labels, iou=0.4, top_k=top_k, max_out=25, score=score)
    assert torch.equal(torch.where(index < 0, -1, index * 4 + label), out)
    assert torch.equal(index < 0, label < 0)


def test_dense_on_a_device_with_crowded_and_empty_classes(device: torch.device) -> None:
    boxes, scores = random_boxes(2, 900, size=400).to(device), torch.rand(2, 900, 3, device=device)
    scores[..., 1] *= 0.01
    scores[1] *= 0.005
    index, label = ops.nms_dense(boxes, scores, iou=0.45, top_k=100, max_out=50, score=0.01)
    for i in range(2):
        ranked = sorted(((float(scores[i, a, c]), a, c) for a in range(900) for c in range(3)), reverse=True)
        kept: list[tuple[float, int, int]] = []
        for c in range(3):
            best = [entry for entry in ranked if entry[2] == c and entry[0] > 0.01][:100]
            picked = torch.tensor([entry[1] for entry in best], dtype=torch.int64)
            own = boxes[i].cpu()[picked]
            values = torch.tensor([entry[0] for entry in best])
            kept += [best[j] for j in torchvision.ops.nms(own, values, 0.45)]
        kept = sorted(kept, reverse=True)[:50]
        assert [a for a in index[i].tolist() if a >= 0] == [entry[1] for entry in kept]
        assert [c for c in label[i].tolist() if c >= 0] == [entry[2] for entry in kept]


@given(st.integers(0, 10**6))
@settings(max_examples=25)
def test_batch_equals_singles_and_order_does_not_matter(seed: int) -> None:
    torch.manual_seed(seed)
    boxes, scores, labels = random_boxes(4, 30), torch.rand(4, 30), torch.randint(0, 2, (4, 30))
    arguments = {"iou": 0.4, "top_k": 9, "max_out": 12}
    out = ops.nms(boxes, scores, labels, **arguments)
    for i in range(4):
        single = ops.nms(boxes[i : i + 1], scores[i : i + 1], labels[i : i + 1], **arguments)
        assert torch.equal(single[0], out[i])
    order = torch.randperm(30)
    shuffled = ops.nms(boxes[:, order], scores[:, order], labels[:, order], **arguments)
    assert torch.equal(torch.where(shuffled < 0, -1, order[shuffled]), out)
    padded = ops.nms(
        torch.cat((boxes, random_boxes(4, 5)), 1),
        torch.cat((scores, torch.full((4, 5), 2.0)), 1),
        torch.cat((labels, torch.full((4, 5), -1)), 1),
        **arguments,
    )
    assert torch.equal(padded, out)


def test_no_offset_between_images_or_classes() -> None:
    """Coordinates so large that shifting them by a group's number would round the boxes."""
    boxes = torch.tensor([0.0, 0, 1, 1]) + torch.rand(16, 40, 1) * 3 + 3e4
    scores, labels = torch.rand(16, 40), torch.arange(40).expand(16, 40) % 20
    out = ops.nms(boxes, scores, labels, iou=0.45, top_k=ALL, max_out=40)
    assert lists(out) == [by_torchvision(*one, 0.45) for one in zip(boxes, scores, labels)]


def test_chain_as_long_as_the_list() -> None:
    """Each box overlaps only its neighbours: every second one stays, the slowest case of the fix point."""
    start = torch.arange(300.0).unsqueeze(1) * 4
    boxes = torch.cat((start, torch.zeros(300, 1), start + 10, torch.full((300, 1), 10.0)), 1).unsqueeze(0)
    out = ops.nms(boxes, torch.arange(300.0, 0, -1).unsqueeze(0), iou=0.4, top_k=ALL, max_out=300)
    assert lists(out) == [list(range(0, 300, 2))]


def test_equal_to_the_threshold_stays_and_equal_boxes_keep_the_first() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10]]])
    scores = torch.tensor([[0.5, 0.5, 0.5]])
    assert lists(ops.nms(boxes, scores, iou=0.5, top_k=9, max_out=9)) == [[0, 1]]
    assert lists(ops.nms(boxes, scores, iou=0.49, top_k=9, max_out=9)) == [[0]]
    assert lists(ops.nms(boxes, scores, iou=1.0, top_k=9, max_out=9)) == [[0, 1, 2]]
    assert lists(ops.nms(boxes, scores, iou=1.0, top_k=2, max_out=9)) == [[0, 1]]
    assert lists(ops.nms(boxes, -scores, torch.tensor([[2, 0, 1]]), iou=0.0, top_k=9, max_out=2)) == [[0, 1]]


def test_top_k_counts_per_class_or_per_image() -> None:
    boxes = torch.arange(6.0).view(1, 6, 1) * 20 + torch.tensor([0.0, 0, 10, 10])
    scores, labels = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]]), torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert lists(ops.nms(boxes, scores, labels, iou=0.5, top_k=2, max_out=9)) == [[0, 1, 3, 4]]
    assert lists(ops.nms(boxes, scores, None, iou=0.5, top_k=2, max_out=9)) == [[0, 1]]


@pytest.mark.parametrize(("batch", "count"), [(0, 5), (2, 0), (0, 0), (2, 3)])
@pytest.mark.parametrize("labelled", [True, False])
def test_nothing_to_do(batch: int, count: int, labelled: bool, device: torch.device) -> None:
    boxes, scores = random_boxes(batch, count).to(device), torch.rand(batch, count, device=device)
    labels = torch.full((batch, count), -1, device=device) if labelled else None
    nobody = torch.zeros(batch, count, dtype=torch.bool, device=device)
    for extra in ({"valid": nobody}, {"score": 2.0}, {"top_k": 0}):
        out = ops.nms(boxes, scores, labels, **{"iou": 0.5, "top_k": 4, "max_out": 6, **extra})
        assert out.tolist() == [[-1] * 6] * batch
    assert ops.nms(boxes, scores, labels, iou=0.5, top_k=4, max_out=0).shape == (batch, 0)
    for classes in (0, 3):
        index, label = ops.nms_dense(
            boxes, scores.unsqueeze(2).expand(-1, -1, classes), iou=0.5, top_k=2, max_out=6, score=2.0
        )
        assert index.tolist() == label.tolist() == [[-1] * 6] * batch


def test_memory_of_one_crowded_class_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = []
    real = module.box_iou
    monkeypatch.setattr(module, "box_iou", lambda a, b: pairs.append(len(a) * a.shape[1] * b.shape[1]) or real(a, b))
    boxes, scores = random_boxes(2, 6000, size=1000, side=90), torch.rand(2, 6000)
    ops.nms(boxes, scores, iou=0.5, top_k=ALL, max_out=6000)
    assert max(pairs) <= max(module.CPU_PAIRS, module.CPU_BLOCK * 6000)


def test_autocast_and_halves(device: torch.device) -> None:
    boxes, scores = random_boxes(2, 300).to(device), torch.rand(2, 300, device=device)
    plain = ops.nms(boxes, scores, iou=0.5, top_k=ALL, max_out=300)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(ops.nms(boxes, scores, iou=0.5, top_k=ALL, max_out=300), plain)
    halves = ops.nms(boxes, scores.half(), iou=0.5, top_k=ALL, max_out=300)
    assert torch.equal(halves, ops.nms(boxes, scores.half().float(), iou=0.5, top_k=ALL, max_out=300))


def test_wrong_arguments() -> None:
    boxes, scores = random_boxes(2, 3), torch.rand(2, 3)
    with pytest.raises(ValueError, match=r"expected boxes \(2, 3, 4\)"):
        ops.nms(boxes[:1], scores, iou=0.5, top_k=1, max_out=1)
    with pytest.raises(ValueError, match=r"expected boxes \(2, 3, 4\) or \(2, 3, 5, 4\)"):
        ops.nms_dense(boxes[:1], torch.rand(2, 3, 5), iou=0.5, top_k=1, max_out=1)
    with pytest.raises(ValueError, match=r"iou 1.5 is not between 0 and 1"):
        ops.nms(boxes, scores, iou=1.5, top_k=1, max_out=1)


def suppressors(boxes: Tensor, scores: Tensor, labels: Tensor | None, **settings: float) -> list[int]:
    """What `nms_suppressors` gives for one image, as a loop over float64 pairs."""
    kept = greedy_nms(boxes, scores, labels, threshold=settings["iou"], top_k=ALL, max_out=ALL)
    result = []
    for j, box in enumerate(boxes.double().tolist()):
        rivals = [i for i in kept if labels is None or labels[i] == labels[j]]
        over = [i for i in rivals if iou(boxes[i].double().tolist(), box) > settings["iou"]]
        result.append(j if j in kept else over[0])
    return result


@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.booleans(),
    st.sampled_from([5, 1 << 22]),
)
def test_suppressors_equal_the_loop(seed: int, count: int, iou: float, labelled: bool, pairs: int) -> None:
    torch.manual_seed(seed)
    boxes, scores = random_boxes(2, count, grid=8.0), (torch.rand(2, count) * 8).round() / 8
    labels = torch.randint(0, 3, (2, count)) if labelled else None
    before = module.CPU_PAIRS
    module.CPU_PAIRS = pairs
    try:
        found = ops.nms_suppressors(boxes, scores, labels, iou=iou, top_k=ALL)
    finally:
        module.CPU_PAIRS = before
    for image in range(2):
        own = None if labels is None else labels[image]
        assert found[image].tolist() == suppressors(boxes[image], scores[image], own, iou=iou)


@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from([1, 4, ALL]), st.sampled_from([-math.inf, 0.4]))
def test_suppressors_agree_with_nms(seed: int, count: int, top_k: int, score: float) -> None:
    torch.manual_seed(seed)
    boxes, scores, labels = random_boxes(3, count), torch.rand(3, count), torch.randint(-1, 3, (3, count))
    valid = torch.rand(3, count) > 0.2
    if count > 2:
        boxes[0, 1, 2], scores[0, 2] = math.nan, math.nan
    settings = {"iou": 0.4, "top_k": top_k, "score": score, "valid": valid}
    found = ops.nms_suppressors(boxes, scores, labels, **settings)
    stays = (found == torch.arange(count)).unsqueeze(0)
    kept = ops.nms(boxes, scores, labels, **settings, max_out=max(count, 1))
    for image, row in enumerate(lists(kept)):
        assert sorted(row) == stays[0][image].nonzero().squeeze(1).tolist()
        # who removes another stays itself, in the same class
        removed = [j for j in range(count) if found[image, j] >= 0]
        assert {int(found[image, j]) for j in removed} <= set(row)
        assert all(labels[image, found[image, j]] == labels[image, j] for j in removed)
    assert not (found[~valid | (labels < 0) | ~(scores > score)] >= 0).any()


def test_suppressors_of_a_crowd(device: torch.device) -> None:
    boxes = random_boxes(1, 4000, size=300).to(device)
    scores = torch.rand(1, 4000, device=device)
    found = ops.nms_suppressors(boxes, scores, iou=0.3, top_k=3500)[0]
    kept = ops.nms(boxes, scores, iou=0.3, top_k=3500, max_out=4000)[0]
    assert sorted(found[found >= 0].unique().tolist()) == sorted(kept[kept >= 0].tolist())
    assert int((found < 0).sum()) == 500
