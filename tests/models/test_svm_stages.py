"""SVMs with hard negatives, and box regression: the stages of R-CNN and SPPNet."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from detkit.models.region_features import RegionFeatures
from detkit.models.svm_detector import CODER, SVMDetectorConfig, SVMHead
from detkit.models.svm_stages import BoxRegression, HardNegatives, SVMs, overlap_by_class, regions, spread
from detkit.ops import box_iou, fit_svm
from detkit.structures import Images, Proposals, Targets
from tests import zoo
from tests.ops.reference import iou_matrix, random_boxes

CLASSES, DIM = 3, 12
SVM: dict[str, Any] = {"C": 0.02, "positive_weight": 3.0, "bias": 7.0}
CONFIG = SVMDetectorConfig(
    svm_c=0.02, svm_positive_weight=3.0, svm_bias=7.0, svm_negative_iou=0.4, ridge=50.0, ridge_match_iou=0.5
)


class Linear:
    """Stands for a detector: features of a box are a fixed function of its coordinates."""

    def __init__(self, **keys: Any) -> None:
        torch.manual_seed(1)
        self.config = replace(CONFIG, **keys)
        self.classes = tuple("abc")
        self.mix = torch.randn(4, DIM)
        self.head = SVMHead(nn.Flatten(), (DIM,), CLASSES, "svm")
        self.features = RegionFeatures()

    def extract_features(self, images: Images, boxes: Tensor, *, tail: bool) -> Tensor:
        return torch.sin(boxes @ self.mix / 20) + (0.5 if tail else 0.2)


class Run:
    """What a stage asks of a run, over batches in memory."""

    device = torch.device("cpu")
    writes = True

    def __init__(self, batches: list[tuple[Images, Targets]], folder: Path) -> None:
        self.batches, self.folder, self.concluded = batches, folder, 0
        self.passes: dict[str, list[int]] = {}  # the images of each pass, by what its progress is called

    def restore(self, detector: Any, images: int, layout: Any) -> dict[str, Any]:
        return {}

    def train_count(self) -> int:
        return sum(len(images) for images, _ in self.batches)

    def begin(self) -> None: ...
    def say(self, text: str) -> None: ...
    def save_last(self, detector: Any, state: dict[str, Any]) -> None: ...
    def on_main(self, make: Callable[[], Any]) -> Any:
        return make()

    def conclude(self, detector: Any) -> None:
        self.concluded += 1

    def dataset_pass(
        self, detector: Any, extract: Any, rows: Any, text: str, done: int = 0, save: Any = None
    ) -> Iterator:
        self.passes[text] = list(rows)
        return (extract(*batch) for batch in self.batches)


def batches(count: int = 6, seed: int = 0) -> list[tuple[Images, Targets]]:
    """Images in pairs, with 3 objects, one of them ignored, and 25 proposals, many of them near an object."""
    torch.manual_seed(seed)
    made = []
    for number in range(count):
        boxes = random_boxes(2, 3, size=60, side=40) + torch.tensor([0.0, 0, 8, 8])
        labels = torch.randint(0, CLASSES, (2, 3))
        ignore = torch.tensor([[False, False, True], [False, True, False]])
        valid = torch.tensor([[True] * 3, [True, True, False]])
        targets = Targets(boxes, torch.where(valid, labels, -1), ignore & valid)
        near = boxes.repeat(1, 5, 1) + torch.randn(2, 15, 4) * 3
        near = torch.cat((near[..., :2], torch.maximum(near[..., 2:], near[..., :2] + 2)), -1)
        given = Proposals(
            torch.cat((near, random_boxes(2, 10, size=60, side=40) + torch.tensor([0.0, 0, 4, 4])), 1),
            torch.rand(2, 25) > 0.1,
        )
        size = torch.tensor([[100, 100]] * 2)
        made.append((Images(torch.zeros(2, 3, 1, 1).byte(), size, size, (f"{number}a", f"{number}b"), given), targets))
    return made


def rows_of(images: Images, targets: Targets) -> Iterator[tuple[list[float], list[bool], list[int]]]:
    """Of each region: its box, and for each class whether it is its negative, and whether its positive. A slow loop."""
    assert images.proposals is not None
    for i in range(len(images)):
        objects = [n for n in range(3) if targets.labels[i, n] >= 0]
        own = [(targets.boxes[i, n].tolist(), int(targets.labels[i, n])) for n in objects if not targets.ignore[i, n]]
        given = images.proposals
        every = own + [(given.boxes[i, r].tolist(), -1) for r in range(25) if given.valid[i, r]]
        for box, label in every:
            free = []
            for k in range(CLASSES):
                theirs = targets.boxes[i][[n for n in objects if targets.labels[i, n] == k]]
                overlap = iou_matrix(torch.tensor([box]), theirs) if len(theirs) else torch.zeros(1, 1)
                free.append(float(overlap.max()) < CONFIG.svm_negative_iou)
            yield box, free, [int(label == k) for k in range(CLASSES)]


def test_the_svms_are_those_of_all_windows_where_nothing_is_left_out(tmp_path: Path) -> None:
    """Few regions in one batch: all negatives are hard, so that the SVMs are those of a plain fit."""
    detector, data = Linear(), batches(1)
    run = Run(data, tmp_path)
    SVMs().run(detector, run)  # pyright: ignore[reportArgumentType]
    table = [row for images, targets in data for row in rows_of(images, targets)]
    features = detector.extract_features(data[0][0], torch.tensor([box for box, _, _ in table]), tail=True)
    scaled = features * (20 / features.norm(dim=1).mean())
    labels = torch.tensor([[1 if p else -1 if f else 0 for f, p in zip(free, own)] for _, free, own in table])
    weight, bias = fit_svm(scaled, labels, **SVM, tolerance=1e-6)
    found, expected = detector.head.svm(features), scaled @ weight.T + bias
    learned = (labels > 0).any(0)
    torch.testing.assert_close(found[:, learned], expected[:, learned], atol=0.02, rtol=0.02)
    # a class without objects is never detected
    assert learned.tolist() == [False, False, True]
    assert (found[:, ~learned] < -1e5).all()
    assert bool(detector.head.svm_fitted)
    assert run.concluded == 1


def test_of_windows_that_are_alike_one_is_a_negative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The windows that mining sees are those that the region features tell apart."""
    detector, data = Linear(), batches(2)
    expected, seen = [], []

    def distinct(boxes: Tensor, sizes: Tensor, valid: Tensor) -> Tensor:
        kept = valid & (torch.arange(boxes.shape[1]) % 3 > 0)
        expected.append(detector.extract_features(data[0][0], boxes, tail=True)[kept])
        return kept

    monkeypatch.setattr(detector.features, "distinct", distinct)
    add = HardNegatives.add
    monkeypatch.setattr(HardNegatives, "add", lambda miner, x, negative: seen.append(x) or add(miner, x, negative))
    SVMs().run(detector, Run(data, tmp_path))  # pyright: ignore[reportArgumentType]
    assert torch.equal(torch.cat(seen), torch.cat(expected))


@pytest.mark.parametrize(("fit_images", "rows"), [(0, list(range(12))), (4, [0, 3, 6, 9])])
def test_the_images_that_a_stage_is_fitted_to(
    fit_images: int, rows: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evenly spread; the features' norm is taken from a few of them."""
    monkeypatch.setattr("detkit.models.svm_stages.SCALE_IMAGES", 3)
    detector, run = Linear(fit_images=fit_images), Run(batches(), tmp_path)
    few = [rows[len(rows) * i // 3] for i in range(3)]
    SVMs().run(detector, run)  # pyright: ignore[reportArgumentType]
    assert run.passes == {"norm of features": few, "positives": rows, "hard negatives": rows}
    run.passes.clear()
    BoxRegression().run(detector, run)  # pyright: ignore[reportArgumentType]
    assert run.passes == {"norm of features": few, "regression": rows}


def test_mining_is_the_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Window by window and class by class: what is hard, when it is fitted again, and what is dropped."""
    monkeypatch.setattr("detkit.models.svm_stages.RETRAIN", 30)
    torch.manual_seed(0)
    positives, labels = torch.randn(9, DIM) + 1, torch.arange(9) % CLASSES
    miner = HardNegatives.begin(CONFIG, torch.tensor(2.0), positives, labels, CLASSES)
    kept: list[dict[int, tuple[Tensor, int]]] = [
        {i: (positives[i], 1) for i in range(9) if labels[i] == k} for k in range(CLASSES)
    ]
    weight, bias, new = torch.zeros(CLASSES, DIM), torch.zeros(CLASSES), [0] * CLASSES

    def fit(k: int) -> None:
        rows = [*kept[k].values()]
        x, y = torch.stack([row for row, _ in rows]), torch.tensor([[sign] for _, sign in rows])
        w, b = fit_svm(x, y, **SVM, tolerance=1e-7)
        weight[k], bias[k], new[k] = w[0], b[0], 0
        kept[k] = {i: (row, y) for i, (row, y) in kept[k].items() if y > 0 or float(row @ w[0] + b[0]) >= -1.2}

    number = 9
    for _ in range(8):
        chunk, free = torch.randn(20, DIM) * 0.7, torch.rand(20, CLASSES) > 0.2
        for k in range(CLASSES):
            for i in range(20):
                row = chunk[i] * 2
                if free[i, k] and float(row @ weight[k] + bias[k]) > -1.0001:
                    kept[k][number + i] = (row, -1)
                    new[k] += 1
        number += 20
        for k in range(CLASSES):
            if new[k] > 30:
                fit(k)
        miner.add(chunk, free)
        miner.join()
        assert miner.new.tolist() == new
        assert (miner.labels != 0).sum(0).tolist() == [len(rows) for rows in kept]
        torch.testing.assert_close(miner.weight, weight, atol=5e-3, rtol=5e-2)
        torch.testing.assert_close(miner.offset, bias, atol=2e-2, rtol=5e-2)
    assert miner.labels.any(1).all()


def test_mining_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    one = HardNegatives.begin(CONFIG, torch.tensor(2.0), torch.randn(9, DIM) + 1, torch.arange(9) % CLASSES, CLASSES)
    chunks = [(torch.randn(20, DIM), torch.rand(20, CLASSES) > 0.2) for _ in range(4)]
    for chunk in chunks[:2]:
        one.add(*chunk)
    other = HardNegatives(CONFIG, **{name: value.clone() for name, value in one.state().items()})
    for chunk in chunks[2:]:
        one.add(*chunk)
        other.add(*chunk)
    for name, value in one.state().items():
        assert torch.equal(other.state()[name], value), name


def test_overlap_by_class() -> None:
    (images, targets), *_ = batches()
    assert images.proposals is not None
    boxes = images.proposals.boxes
    found = overlap_by_class(boxes, targets, CLASSES)
    for i in range(2):
        for k in range(CLASSES):
            own = (targets.labels[i] == k).nonzero()[:, 0]
            expected = box_iou(boxes[i], targets.boxes[i, own]).amax(1) if len(own) else torch.zeros(25)
            assert torch.equal(found[i, :, k], expected)


def test_regions_are_objects_and_proposals() -> None:
    (images, targets), *_ = batches()
    assert images.proposals is not None
    boxes, real = regions(images, targets)
    assert torch.equal(boxes[:, 3:], images.proposals.boxes)
    assert real[:, :3].tolist() == [[True, True, False], [True, False, False]]


@pytest.mark.parametrize(("count", "images", "expected"), [(5, 0, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4])])
def test_spread(count: int, images: int, expected: list[int]) -> None:
    assert spread(count, images) == expected
    assert spread(1000, 3) == [0, 333, 666]


def test_regression_is_sklearns_ridge(tmp_path: Path) -> None:
    detector, data = Linear(), batches()
    run = Run(data, tmp_path)
    BoxRegression().run(detector, run)  # pyright: ignore[reportArgumentType]
    assert run.concluded == 1
    assert bool(detector.head.regression_fitted)

    every = []  # the norm is that of all regions
    pairs: dict[int, list[tuple[Tensor, Tensor]]] = {k: [] for k in range(CLASSES)}
    for images, targets in data:
        assert images.proposals is not None
        for i in range(2):
            used = [n for n in range(3) if targets.labels[i, n] >= 0 and not targets.ignore[i, n]]
            ignored = [n for n in range(3) if targets.labels[i, n] >= 0 and targets.ignore[i, n]]
            given = images.proposals.boxes[i][images.proposals.valid[i]]
            for box in (*targets.boxes[i, used], *given):  # the objects' own boxes are among the regions
                every.append(box)
                overlap = iou_matrix(box[None], targets.boxes[i, used])[0]
                best = int(overlap.argmax())
                if overlap[best] >= CONFIG.ridge_match_iou:
                    n = used[best]
                    pairs[int(targets.labels[i, n])].append((box, CODER.encode(targets.boxes[i, n], box)))
                assert ignored or overlap.numel()
    features = detector.extract_features(data[0][0], torch.stack(every), tail=False)
    factor = float(20 / features.norm(dim=1).mean())
    probe = detector.extract_features(data[0][0], torch.stack(every[:20]), tail=False)
    found = detector.head.regressor(probe).unflatten(1, (CLASSES, 4))
    for k, rows in pairs.items():
        assert len(rows) > 5
        x = detector.extract_features(data[0][0], torch.stack([box for box, _ in rows]), tail=False) * factor
        y = torch.stack([deltas for _, deltas in rows]).double()
        ones = torch.ones(len(x), 1)
        ridge = Ridge(alpha=50.0, fit_intercept=False).fit(torch.cat((x, ones), 1).double().numpy(), y - y.mean(0))
        expected = ridge.predict(torch.cat((probe * factor, torch.ones(20, 1)), 1).double().numpy())
        torch.testing.assert_close(found[:, k].double(), torch.as_tensor(expected) + y.mean(0), atol=1e-4, rtol=1e-3)


def test_until_it_is_fitted_the_softmax_scores() -> None:
    head = SVMHead(nn.Flatten(), (DIM,), CLASSES, "svm")
    by_softmax = SVMHead(nn.Flatten(), (DIM,), CLASSES, "softmax")
    x = torch.randn(2, 7, DIM)
    softmax = head.logits(x).softmax(-1)[..., :-1]
    scores, deltas = head.predict(x)
    assert torch.equal(scores, softmax)
    assert deltas.shape == (2, 7, CLASSES, 4)
    assert not deltas.any()
    head.svm_fitted.fill_(True)
    head.svm.weight.normal_()
    head.regressor.weight.normal_()
    scores, deltas = head.predict(x)
    assert torch.equal(scores, head.svm(x))
    assert torch.equal(deltas, head.regressor(x).unflatten(2, (CLASSES, 4)))
    by_softmax.load_state_dict(head.state_dict())
    assert torch.equal(by_softmax.predict(x)[0], softmax)
    assert {name for name, value in head.named_parameters() if value.requires_grad} == {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.parametrize("model", ["rcnn", "sppnet"])
def test_stages_are_what_the_config_says(model: str) -> None:
    sgd, svms, regression = zoo.build(model).stages()
    assert (svms, regression) == (SVMs(), BoxRegression())
    assert zoo.build(model, scoring="softmax").stages() == [sgd, regression]
    assert zoo.build(model, regression=False).stages() == [sgd, svms]
