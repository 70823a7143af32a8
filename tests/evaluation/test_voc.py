"""AP against hand-computed cases, and against the development kit's rules as slow loops."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.errors import UserError
from detkit.evaluation import flat, voc_ap
from tests.evaluation.reference import voc_ap_loops
from tests.evaluation.sets import detection_set, random_sets, truth_set
from tests.pretend import DEVICES, using

BOX = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)


def ap_of(rows, objects, name="cat", **options) -> float:
    result = voc_ap(detection_set(rows), truth_set(objects), **options)
    return float(result.ap[result.classes.index(name)])


def test_found_missed_and_wrong():
    objects = [("a", "cat", BOX), ("b", "cat", BOX)]
    assert ap_of([("a", "cat", 0.9, BOX), ("b", "cat", 0.8, BOX)], objects) == pytest.approx(1, abs=1e-12)
    assert ap_of([("a", "cat", 0.9, BOX)], objects) == pytest.approx(6 / 11)
    assert ap_of([("a", "cat", 0.9, BOX)], objects, metric="voc") == pytest.approx(0.5)
    # precision 1, 1/2, 2/3 at recall .5, .5, 1: six points of 1, five of 2/3
    rows = [("a", "cat", 0.9, BOX), ("a", "cat", 0.8, FAR), ("b", "cat", 0.7, BOX)]
    assert ap_of(rows, objects) == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert ap_of(rows, objects, metric="voc") == pytest.approx((1 + 2 / 3) / 2)


def test_duplicates_are_wrong():
    rows = [("a", "cat", 0.9, BOX), ("a", "cat", 0.8, BOX), ("b", "cat", 0.7, BOX)]
    objects = [("a", "cat", BOX), ("b", "cat", BOX)]
    result = voc_ap(detection_set(rows), truth_set(objects))
    assert float(result.ap[0]) == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert (result.found[0], result.counted[0]) == (2, 3)


def test_difficult_objects_are_neither_right_nor_wrong():
    objects = [("a", "cat", BOX), ("b", "cat", BOX, True)]
    rows = [("b", "cat", 0.9, BOX), ("b", "cat", 0.8, BOX), ("a", "cat", 0.7, BOX)]
    result = voc_ap(detection_set(rows), truth_set(objects))
    assert float(result.ap[0]) == pytest.approx(1, abs=1e-12)
    assert (result.npos[0], result.counted[0]) == (1, 1)


def test_a_taken_object_does_not_fall_back_to_the_second_best():
    objects = [("a", "cat", BOX), ("a", "cat", (0, 0, 10, 8))]
    rows = [("a", "cat", 0.9, BOX), ("a", "cat", 0.8, (0, 0, 10, 9.5))]
    assert voc_ap(detection_set(rows), truth_set(objects)).found[0] == 1


def test_a_difficult_object_counts_as_the_best_overlap():
    objects = [("a", "cat", (0, 0, 10, 8)), ("a", "cat", BOX, True)]
    result = voc_ap(detection_set([("a", "cat", 0.9, (0, 0, 10, 9.5))]), truth_set(objects))
    assert (result.found[0], result.counted[0]) == (0, 0)


def test_equal_overlaps_go_to_the_first_object():
    objects = [("a", "cat", (0, 0, 10, 9)), ("a", "cat", (0, 1, 10, 10), True)]
    assert ap_of([("a", "cat", 0.9, BOX)], objects) == pytest.approx(1, abs=1e-12)
    assert ap_of([("a", "cat", 0.9, BOX)], objects[::-1]) == 0


@pytest.mark.parametrize("size", [10, 999, 4096])
def test_exactly_half_is_enough(size: int):
    objects = [("a", "cat", (0, 0, size, size))]
    assert ap_of([("a", "cat", 0.9, (0, 0, size, 2 * size))], objects) == pytest.approx(1, abs=1e-12)
    assert ap_of([("a", "cat", 0.9, (0, 0, size, 2 * size + 1))], objects) == 0


def test_half_of_an_area_that_float32_cannot_hold():
    # 2 * 5001 * 5003 lies between two float32 values, of which the upper is nearer by the rule for ties
    objects = [("a", "cat", (0, 0, 5001, 5003))]
    assert ap_of([("a", "cat", 0.9, (0, 0, 5001, 10006))], objects) == pytest.approx(1, abs=1e-12)


def test_equal_scores_keep_the_order_given():
    objects = [("a", "cat", BOX)]
    right, wrong = ("a", "cat", 0.5, BOX), ("a", "cat", 0.5, FAR)
    assert ap_of([right, *[wrong] * 40], objects, metric="voc") == 1
    assert ap_of([*[wrong] * 40, right], objects, metric="voc") == pytest.approx(1 / 41)


def test_recall_just_below_a_tenth_by_rounding():
    # 3 of 10 found is recall 0.3, below numpy's 0.30000000000000004: only the levels 0, .1 and .2 are reached
    ids = [str(k) for k in range(10)]
    truth = truth_set([(name, "cat", BOX) for name in ids], ids)
    found = detection_set([(name, "cat", 0.9, BOX) for name in ids[:3]], ids)
    assert float(voc_ap(found, truth).ap[0]) == pytest.approx(3 / 11)


def test_classes_without_objects_and_without_detections():
    classes = ("cat", "dog", "owl", "rat")
    truth = truth_set([("a", "cat", BOX), ("a", "owl", BOX), ("a", "rat", BOX, True)], classes=classes)
    found = detection_set([("a", "cat", 1, BOX), ("a", "dog", 1, BOX), ("a", "rat", 1, BOX)], classes=classes)
    result = voc_ap(found, truth)
    assert result.ap.tolist() == pytest.approx([1, math.nan, 0, math.nan], nan_ok=True)
    assert result.mAP == pytest.approx(0.5)
    assert result.to_dict()["AP"] == {"cat": pytest.approx(1), "dog": None, "owl": 0, "rat": None}


@pytest.mark.parametrize("metric", ["voc07", "voc"])
def test_nothing_at_all(metric: str):
    result = voc_ap(detection_set([]), truth_set([]), metric=metric)
    assert result.ap.isnan().all()
    assert math.isnan(result.mAP)
    assert result.to_dict()["mAP"] is None
    assert voc_ap(detection_set([], (), ()), truth_set([], (), ()), metric=metric).ap.shape == (0,)
    assert ap_of([], [("a", "cat", BOX)], metric=metric) == 0


def test_names_are_joined_not_numbers():
    truth = truth_set([("a", "cat", BOX), ("b", "dog", FAR)])
    found = detection_set([("b", "dog", 0.9, FAR), ("a", "cat", 0.9, BOX)], ("b", "a"), ("dog", "cat"))
    assert voc_ap(found, truth).ap.tolist() == pytest.approx([1, 1])
    some = detection_set([("b", "dog", 0.9, FAR)], ("b",), ("dog",))
    assert voc_ap(some, truth).ap.tolist() == pytest.approx([0, 1])


def test_negative_scores_and_both_zeros():
    objects = [("a", "cat", BOX), ("b", "cat", BOX)]
    rows = [("a", "cat", -2.0, FAR), ("a", "cat", -1.0, BOX), ("b", "cat", 0.5, BOX)]
    assert ap_of(rows, objects) == pytest.approx(1, abs=1e-12)
    # zero and minus zero are equal, so the order given decides
    assert ap_of([("a", "cat", -0.0, BOX), ("a", "cat", 0.0, FAR)], objects[:1], metric="voc") == 1
    assert ap_of([("a", "cat", 0.0, FAR), ("a", "cat", -0.0, BOX)], objects[:1], metric="voc") == 0.5


def test_boxes_without_area_find_nothing():
    objects = [("a", "cat", (5, 5, 5, 5)), ("a", "cat", BOX)]
    rows = [("a", "cat", 0.9, (5, 5, 5, 5)), ("a", "cat", 0.8, (10, 10, 0, 0)), ("a", "cat", 0.7, BOX)]
    result = voc_ap(detection_set(rows), truth_set(objects))
    assert (result.found[0], result.counted[0]) == (1, 3)


def test_curves():
    objects = [("a", "cat", BOX), ("b", "cat", BOX), ("a", "dog", BOX)]
    rows = [
        ("a", "dog", 0.3, BOX),
        ("b", "cat", 0.4, BOX),
        ("a", "cat", 0.9, BOX),
        ("a", "cat", 0.6, FAR),
    ]
    result = voc_ap(detection_set(rows), truth_set(objects))
    recall, precision, scores = result.curve(0)
    assert recall.tolist() == [0.5, 0.5, 1]
    assert precision.tolist() == pytest.approx([1, 0.5, 2 / 3])
    assert scores.tolist() == pytest.approx([0.9, 0.6, 0.4])
    assert [part.tolist() for part in result.curve(1)] == [[1], [1], [pytest.approx(0.3)]]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([("a", "cat", math.nan, BOX)], r"'cat' in image 'a': its score \(nan\)"),
        ([("a", "cat", 1, BOX), ("b", "dog", math.inf, BOX)], r"'dog' in image 'b': its score \(inf\)"),
        ([("a", "cat", 1, BOX), ("b", "cat", 1, (0, math.nan, 1, 1))], r"'cat' in image 'b': its box \(0, nan, 1, 1\)"),
        ([("b", "cat", 1, (0, 0, 1, -math.inf))], r"'cat' in image 'b': its box"),
    ],
)
def test_values_that_are_not_finite(rows, line: str):
    with pytest.raises(UserError, match=line):
        voc_ap(detection_set(rows), truth_set([("a", "cat", BOX)]))


def test_unknown_names_and_settings():
    truth = truth_set([("a", "cat", BOX)])
    with pytest.raises(UserError, match="image 'c', which the data set does not have"):
        voc_ap(detection_set([], ("a", "c")), truth)
    with pytest.raises(UserError, match=r"class 'catt', .* did you mean 'cat'"):
        voc_ap(detection_set([], classes=("catt",)), truth)
    with pytest.raises(UserError, match="metric 'coco'"):
        voc_ap(detection_set([]), truth, metric="coco")
    with pytest.raises(UserError, match="iou 50"):
        voc_ap(detection_set([]), truth, iou=50)
    found = detection_set([("a", "cat", 1, BOX)])
    with pytest.raises(ValueError, match=r"detections.labels: expected values from 0 to 1, got -1"):
        voc_ap(dataclasses.replace(found, labels=torch.tensor([-1])), truth)
    with pytest.raises(ValueError, match=r"truth.image: expected values from 0 to 1, got 2"):
        voc_ap(found, dataclasses.replace(truth, image=torch.tensor([2])))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", ["voc07", "voc"])
@settings(max_examples=250)
@given(
    seed=st.integers(0, 2**32), iou=st.sampled_from([0.5, 0.5, 0.3, 0.75, 1.0]), pairs=st.sampled_from([1, 7, 1 << 17])
)
def test_equals_the_kit_as_slow_loops(device: str, metric: str, seed: int, iou: float, pairs: int):
    found, truth = random_sets(np.random.default_rng(seed))
    with pytest.MonkeyPatch.context() as patch, using(device):
        patch.setattr(flat, "PAIRS", pairs)
        result = voc_ap(found.to(device), truth.to(device), iou=iou, metric=metric)
    expected = voc_ap_loops(found, truth, iou, metric)
    assert result.ap.tolist() == pytest.approx(expected, abs=1e-12, nan_ok=True)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60)
def test_order_between_classes_and_images_means_nothing(seed: int):
    random = np.random.default_rng(seed)
    found, truth = random_sets(random)
    scores = torch.from_numpy(
        random.permutation(len(found.labels))
    ).double()  # no ties, whose order does mean something
    found = dataclasses.replace(found, scores=scores)
    order = torch.from_numpy(random.permutation(len(scores)))
    parts = {name: getattr(found, name)[order] for name in ("boxes", "scores", "labels", "image")}
    for metric in ("voc07", "voc"):
        first, second = (voc_ap(one, truth, metric=metric).ap for one in (found, dataclasses.replace(found, **parts)))
        torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
