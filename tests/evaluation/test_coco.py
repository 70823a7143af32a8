"""COCO's AP and AR against hand-computed cases, and against pycocotools, class by class."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detkit.data.voc import VOCDataset
from detkit.errors import UserError
from detkit.evaluation import coco_ap, flat, pycocotools_summary
from detkit.evaluation.coco import COCOResult
from detkit.evaluation.pycoco import pycocotools_eval
from detkit.structures import DetectionSet, TruthSet
from tests.evaluation.sets import detection_set, truth_set
from tests.pretend import DEVICES, using
from tests.real_data import DATA, needs

BOX = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)


def summary_of(rows, objects, area: list[float] | None = None) -> dict[str, float]:
    truth = truth_set(objects)
    if area is not None:
        truth = dataclasses.replace(truth, area=torch.tensor(area, dtype=torch.float64))
    found = detection_set(rows)
    result = coco_ap(found, truth)
    assert_same(result, found, truth)
    return result.summary


def assert_same(result: COCOResult, found: DetectionSet, truth: TruthSet) -> None:
    """All of pycocotools' precisions and recalls, and its twelve numbers; -1 there is NaN here."""
    if truth.classes:
        evaluator = pycocotools_eval(found, truth)
        # (T, R, K, A, M) and (T, K, A, M)
        precision, recall = (np.where(evaluator.eval[key] == -1, np.nan, evaluator.eval[key]) for key in PARTS)
        close = {"rtol": 0, "atol": 1e-12, "equal_nan": True}
        np.testing.assert_allclose(result.precision.cpu(), precision[..., 2].mean(1).transpose(2, 0, 1), **close)
        np.testing.assert_allclose(result.recall.cpu(), recall.transpose(3, 2, 0, 1), **close)
        assert result.summary == pytest.approx(pycocotools_summary(found, truth), abs=1e-12, nan_ok=True)


PARTS = ("precision", "recall")


def test_found_missed_and_wrong():
    objects = [("a", "cat", BOX), ("b", "cat", BOX)]
    rows = [("a", "cat", 0.9, BOX), ("a", "cat", 0.8, FAR), ("b", "cat", 0.7, BOX)]
    # recalls 0, .01, ..., .5 have precision 1, the fifty above it 2/3
    expected = (51 + 50 * 2 / 3) / 101
    numbers = summary_of(rows, objects)
    assert [numbers[name] for name in ("AP", "AP50", "AP75", "APs")] == pytest.approx([expected] * 4)
    assert [numbers[name] for name in ("AR1", "AR10", "AR100", "ARs")] == [1] * 4
    assert all(math.isnan(numbers[name]) for name in ("APm", "APl", "ARm", "ARl"))
    assert 1 - 1e-15 < summary_of(rows[:1], objects[:1])["AP"] < 1  # by the guard against 0 / 0
    assert summary_of(rows[1:2], objects)["AP"] == 0
    assert summary_of([], objects)["AR100"] == 0


def test_the_ious():
    """IoU .75 is enough for .5, .55, ..., .75: six of the ten."""
    numbers = summary_of([("a", "cat", 0.9, (0, 0, 10, 7.5))], [("a", "cat", BOX)])
    assert numbers["AP75"] == pytest.approx(1)
    assert numbers["AP"] == pytest.approx(0.6)
    assert numbers["AR1"] == pytest.approx(0.6)
    assert summary_of([("a", "cat", 0.9, (0, 0, 10, 7.4))], [("a", "cat", BOX)])["AP75"] == 0


def test_a_taken_object_leaves_the_second_best():
    """Unlike with VOC's rules, where the second detection would be a duplicate."""
    objects = [("a", "cat", BOX), ("a", "cat", (0, 0, 10, 8))]
    rows = [("a", "cat", 0.9, BOX), ("a", "cat", 0.8, (0, 0, 10, 9.5))]
    assert summary_of(rows, objects)["AR100"] == pytest.approx((10 + 7) / 20)  # its IoU with the other is .84


def test_the_last_of_equal_overlaps_is_taken():
    """The first detection overlaps both by .9, the second only one of them enough."""
    objects = [("a", "cat", (0, 0, 10, 9)), ("a", "cat", (0, 1, 10, 10))]
    for second, recall in (((0, 0, 10, 5), 1.0), ((0, 5, 10, 10), 0.5)):
        numbers = coco_ap(detection_set([("a", "cat", 0.9, BOX), ("a", "cat", 0.8, second)]), truth_set(objects))
        assert float(numbers.recall[2, 0, 0, 0]) == recall


def test_crowds_take_any_number_of_detections_that_lie_in_them():
    objects = [("a", "cat", BOX), ("a", "cat", (40, 40, 80, 80), True)]
    inside = [("a", "cat", 0.9, (40 + k, 40, 44 + k, 44)) for k in range(5)]
    right = ("a", "cat", 0.1, BOX)
    assert summary_of([*inside, right], objects)["AP"] == pytest.approx(1)
    # half inside is enough at IoU .5, and at no other
    half = ("a", "cat", 0.9, (38, 40, 42, 44))
    numbers = summary_of([half, right], objects)
    assert numbers["AP50"] == pytest.approx(1)
    assert numbers["AP"] == pytest.approx((1 + 9 / 2) / 10)


def test_a_crowd_is_taken_last():
    """The detection overlaps the crowd more, the object enough."""
    objects = [("a", "cat", (0, 0, 40, 40), True), ("a", "cat", BOX)]
    assert summary_of([("a", "cat", 0.9, (0, 0, 10, 6))], objects)["AP50"] == pytest.approx(1)
    # at the higher IoUs it is the crowd's, so neither right nor wrong
    assert summary_of([("a", "cat", 0.9, (0, 0, 10, 6)), ("a", "cat", 0.5, BOX)], objects)["AP75"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("area", "sizes"),
    [(1023.0, "s"), (1024.0, "sm"), (1025.0, "m"), (9216.0, "ml"), (9217.0, "l"), (1e10, "l"), (2e10, "")],
)
def test_areas_are_those_of_the_annotation_with_both_ends(area: float, sizes: str):
    numbers = summary_of([("a", "cat", 0.9, BOX)], [("a", "cat", BOX)], [area])
    for size in "sml":
        expected = 1 if size in sizes else math.nan
        assert [numbers[f"AP{size}"], numbers[f"AR{size}"]] == pytest.approx([expected] * 2, nan_ok=True)
    assert numbers["AP"] == pytest.approx(1 if sizes else math.nan, nan_ok=True)


def test_detections_outside_an_area_count_only_where_they_are_right():
    large = (100.0, 100.0, 300.0, 300.0)
    wrong = ("a", "cat", 0.9, large)
    numbers = summary_of([wrong, ("a", "cat", 0.8, BOX)], [("a", "cat", BOX)])
    assert (numbers["AP"], numbers["APs"]) == pytest.approx((0.5, 1))
    # the box of the detection is large, the area of its object medium
    assert summary_of([wrong], [("a", "cat", large)], [2000.0])["APm"] == pytest.approx(1)


def test_a_hundred_detections_of_a_class_in_an_image():
    objects = [("a", "cat", BOX), ("b", "cat", BOX), ("b", "dog", BOX)]
    wrong = [("a", "cat", 0.9 - k / 1000, FAR) for k in range(99)]
    last, other = ("a", "cat", 0.1, BOX), ("b", "cat", 0.05, BOX)
    many = [("b", "dog", 0.9 - k / 1000, FAR) for k in range(120)]  # another class and image, where they matter alone
    numbers = coco_ap(detection_set([*wrong, last, other, *many]), truth_set(objects)).recall[:, 0, 0, 0]
    assert numbers.tolist() == [0.5, 0.5, 1]
    numbers = coco_ap(detection_set([*wrong, wrong[0], last, other, *many]), truth_set(objects)).recall[:, 0, 0, 0]
    assert numbers.tolist() == [0.5, 0.5, 0.5]


def test_equal_scores_keep_the_order_of_images_then_the_order_given():
    objects = [("a", "cat", BOX), ("b", "cat", BOX)]
    right, wrong = ("a", "cat", 0.5, BOX), ("b", "cat", 0.5, FAR)
    assert summary_of([wrong, right], objects)["AP"] == summary_of([right, wrong], objects)["AP"]
    assert summary_of([wrong, right], objects)["AP"] == pytest.approx(51 / 101)
    own = ("a", "cat", 0.5, FAR)
    assert summary_of([right, own], objects)["AP"] > summary_of([own, right], objects)["AP"]


def test_names_are_joined_not_numbers():
    truth = truth_set([("a", "cat", BOX), ("b", "dog", FAR)])
    found = detection_set([("b", "dog", 0.9, FAR), ("a", "cat", 0.9, BOX)], ("b", "a"), ("dog", "cat"))
    assert coco_ap(found, truth).ap.tolist() == pytest.approx([1, 1])
    some = detection_set([("b", "dog", 0.9, FAR)], ("b",), ("dog",))
    result = coco_ap(some, truth)
    assert result.ap.tolist() == pytest.approx([0, 1])
    assert result.to_dict()["AP"] == pytest.approx({"cat": 0, "dog": 1})
    assert_same(result, some, truth)


def test_nothing_at_all():
    result = coco_ap(detection_set([]), truth_set([]))
    assert result.ap.isnan().all()
    content = result.to_dict()
    assert content["AP"] == {"cat": None, "dog": None}
    assert all(content[name] is None for name in result.summary if name != "AP")
    assert content["mAP"] is None
    assert coco_ap(detection_set([], (), ()), truth_set([], (), ())).ap.shape == (0,)
    crowd = truth_set([("a", "cat", BOX, True)])
    assert math.isnan(coco_ap(detection_set([("a", "cat", 0.9, BOX)]), crowd).mAP)


def test_to_dict_has_all_numbers():
    result = coco_ap(detection_set([("a", "cat", 0.9, BOX)]), truth_set([("a", "cat", BOX)]))
    content = result.to_dict()
    assert (content["metric"], content["mAP"], content["images"]) == ("coco", result.summary["AP"], 2)
    assert {name: content[name] for name in result.summary if name not in ("AP", "APm", "APl", "ARm", "ARl")} == {
        "AP50": pytest.approx(1),
        "AP75": pytest.approx(1),
        "APs": pytest.approx(1),
        **dict.fromkeys(("AR1", "AR10", "AR100", "ARs"), 1),
    }


def test_curves_are_those_at_half():
    objects = [("a", "cat", BOX), ("b", "cat", BOX), ("a", "cat", (20, 20, 40, 40), True), ("a", "dog", BOX)]
    rows = [
        ("a", "dog", 0.3, BOX),
        ("b", "cat", 0.4, (0, 0, 10, 5)),
        ("a", "cat", 0.9, BOX),
        ("a", "cat", 0.7, (20, 20, 25, 25)),
        ("a", "cat", 0.6, FAR),
    ]
    result = coco_ap(detection_set(rows), truth_set(objects))
    recall, precision, scores = result.curves.curve(0)
    assert recall.tolist() == [0.5, 0.5, 1]
    assert precision.tolist() == pytest.approx([1, 0.5, 2 / 3])
    assert scores.tolist() == pytest.approx([0.9, 0.6, 0.4])
    assert [part.tolist() for part in result.curves.curve(1)] == [[1], [1], [pytest.approx(0.3)]]
    assert result.curves.mAP == pytest.approx(result.summary["AP50"])
    assert (result.curves.found.tolist(), result.curves.counted.tolist()) == ([2, 1], [3, 1])
    assert "IoU >= 0.5" in result.curves.protocol


def test_what_is_wrong_is_said():
    truth = truth_set([("a", "cat", BOX)])
    with pytest.raises(UserError, match="image 'c', which the data set does not have"):
        coco_ap(detection_set([], ("a", "c")), truth)
    with pytest.raises(UserError, match=r"its score \(nan\) is not finite"):
        coco_ap(detection_set([("a", "cat", math.nan, BOX)]), truth)
    with pytest.raises(ValueError, match=r"TruthSet.area: expected shape \(1\), got \(2,\)"):
        dataclasses.replace(truth, area=torch.ones(2))


def random_sets(random: np.random.Generator) -> tuple[DetectionSet, TruthSet]:
    """Few places, sizes and scores, so that ties, exact IoUs, duplicates, hits and rejections are common."""
    images, classes = int(random.integers(1, 5)), int(random.integers(1, 4))
    ids, names = [f"i{k}" for k in range(images)], [f"c{k}" for k in range(classes)]
    # tiny, around the limits of small, medium and large, and around that of all, 1e5 x 1e5
    scale = random.choice([0.01, 1, 8, 32, 2.5e4])

    def boxes(count: int) -> np.ndarray:
        corner = random.integers(0, 3, (count, 2))
        jitter = random.normal(0, 0.2, (count, 4)) * random.choice([0, 1])
        places = np.concatenate([corner, corner + random.integers(1, 6, (count, 2))], 1)
        return ((places + jitter) * scale).astype(np.float32)

    count = int(random.choice([0, 1, 5, 20, 60]))
    place, size = boxes(count), None
    if random.random() < 0.5:
        size = np.prod(place[:, 2:].astype(np.float64) - place[:, :2], 1) * random.choice([0.5, 1, 2, 0], count)
        size = torch.from_numpy(np.where(random.random(count) < 0.2, random.choice([1024, 9216, 1e10], count), size))
    truth = TruthSet(
        torch.from_numpy(place),
        torch.from_numpy(random.integers(0, classes, count)),
        torch.from_numpy(random.random(count) < random.choice([0, 0.3, 1], p=[0.4, 0.5, 0.1])),
        torch.from_numpy(random.integers(0, images, count)),
        tuple(ids),
        tuple(names),
        size,
    )
    count = int(random.choice([0, 1, 8, 60, 400]))
    found = DetectionSet(
        torch.from_numpy(boxes(count)),
        torch.from_numpy(random.choice([0.1, 0.25, 0.5, 0.7, 0.9, -1.0, 0.0, -0.0], count)).float(),
        torch.from_numpy(random.integers(0, classes, count)),
        torch.from_numpy(random.integers(0, images, count)),
        tuple(random.permutation(ids).tolist()),
        tuple(random.permutation(names).tolist()),
    )
    return found, truth


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), pairs=st.sampled_from([7, 1 << 17]))
@example(seed=0, pairs=1)
def test_equals_pycocotools(device: str, seed: int, pairs: int):
    found, truth = random_sets(np.random.default_rng(seed))
    with pytest.MonkeyPatch.context() as patch, using(device):
        patch.setattr(flat, "PAIRS", pairs)
        result = coco_ap(found.to(device), truth.to(device))
    assert result.precision.device.type == device
    assert_same(result, found, truth)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_order_between_classes_and_images_means_nothing(seed: int):
    random = np.random.default_rng(seed)
    found, truth = random_sets(random)
    # no ties, whose order does mean something
    found = dataclasses.replace(found, scores=torch.from_numpy(random.permutation(len(found.labels))).double())
    order = torch.from_numpy(random.permutation(len(found.labels)))
    parts = {name: getattr(found, name)[order] for name in ("boxes", "scores", "labels", "image")}
    first, second = (coco_ap(one, truth) for one in (found, dataclasses.replace(found, **parts)))
    for name in ("precision", "recall"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0, equal_nan=True)


@needs("bccd")
def test_equals_pycocotools_on_blood_cells():
    """Real objects, of crowded images; each found by three shifted copies, and some by other classes."""
    truth = VOCDataset([(DATA / "bccd", "test")]).truth()
    random = np.random.default_rng(0)
    origin = np.tile(np.arange(len(truth.labels)), 3)
    boxes = truth.boxes[origin] + torch.from_numpy(random.normal(0, 6, (len(origin), 4))).float()
    labels = torch.where(torch.from_numpy(random.random(len(origin)) < 0.1), 0, truth.labels[origin])
    scores = torch.from_numpy(random.random(len(origin)).round(2)).float()
    found = DetectionSet(boxes, scores, labels, truth.image[origin], truth.ids, truth.classes)
    result = coco_ap(found, truth)
    assert 0.05 < result.mAP < 0.95
    assert_same(result, found, truth)
