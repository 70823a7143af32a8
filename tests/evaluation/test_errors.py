"""Kinds of errors and what each costs: by hand, against slow loops written from TIDE's paper and other metrics."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detkit.errors import UserError
from detkit.evaluation import coco_ap, flat, score
from detkit.evaluation.coco import coco_matches
from detkit.evaluation.diagnosis import (
    calibrate,
    confusion_matrix,
    crowding,
    histogram,
    object_groups,
    operating_score,
)
from detkit.evaluation.errors import KINDS, ORACLES, STATES, analyse_errors
from detkit.ops import box_iou
from detkit.structures import DetectionSet, TruthSet
from tests.evaluation.reference import area
from tests.evaluation.sets import detection_set, random_sets, truth_set
from tests.pretend import DEVICES, using

BOX, FAR = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)


def kinds(rows, objects, metric: str = "voc07") -> list[str]:
    errors = analyse_errors(detection_set(rows), truth_set(objects), metric)
    return [STATES[state] for state in errors.state.tolist()]


@pytest.mark.parametrize("metric", ["voc07", "voc", "coco"])
def test_one_of_each_kind(metric: str):
    objects = [("a", "cat", BOX), ("a", "dog", FAR), ("b", "dog", BOX), ("b", "cat", FAR, True)]
    rows = [
        ("a", "cat", 0.9, BOX),
        ("a", "cat", 0.8, (0, 0, 10, 9)),  # the cat is taken
        ("a", "cat", 0.7, (0, 0, 10, 40)),  # IoU .25 with it
        ("a", "cat", 0.6, FAR),  # a dog
        ("a", "cat", 0.5, (50, 50, 60, 80)),  # IoU 1/3 with a dog
        ("a", "dog", 0.4, (100, 100, 110, 110)),
        ("b", "cat", 0.3, FAR),  # difficult
    ]
    expected = ["right", "duplicate", "localisation", "class", "both", "background", "ignored"]
    assert kinds(rows, objects, metric) == expected
    errors = analyse_errors(detection_set(rows), truth_set(objects), metric)
    assert errors.object.tolist() == [0, 0, 0, 1, -1, -1, -1]
    assert errors.found.tolist() == [True, False, False, False]
    assert errors.missed.tolist() == [False, False, True, False]  # the first dog is lost by a class error
    assert dict(zip(KINDS, errors.counts.tolist())) == dict.fromkeys(KINDS, 1)
    assert errors.near[:4].tolist() == pytest.approx([1, 0.9, 0.25, 0])
    assert errors.reach.tolist() == pytest.approx([1, 0, 0, 0])


def test_thresholds_and_what_comes_first():
    objects = [("a", "cat", BOX), ("a", "dog", (0, 0, 10, 9))]
    # both a half and a tenth: exactly at the thresholds
    assert kinds([("a", "cat", 0.9, (0, 0, 10, 20))], objects[:1]) == ["right"]
    assert kinds([("a", "cat", 0.9, (0, 0, 10, 100))], objects[:1]) == ["localisation"]
    assert kinds([("a", "cat", 0.9, (0, 0, 10, 101))], objects[:1]) == ["background"]
    assert kinds([("a", "dog", 0.9, (0, 0, 10, 100))], objects[:1]) == ["background"]
    # a dog as well: class comes before duplicate, localisation before class
    assert kinds([("a", "cat", 0.9, BOX), ("a", "cat", 0.8, BOX)], objects) == ["right", "class"]
    small = [("a", "cat", (0, 0, 10, 4)), ("a", "dog", BOX)]
    assert kinds([("a", "cat", 0.9, BOX)], small) == ["localisation"]


def test_the_better_of_two_claims_stays():
    # the misplaced box is better scored than the true positive: put right, it takes the object, and that goes
    rows = [("a", "cat", 0.9, (0, 0, 10, 40)), ("b", "cat", 0.8, FAR), ("a", "cat", 0.7, BOX)]
    errors = analyse_errors(detection_set(rows), truth_set([("a", "cat", BOX)]), "voc")
    assert float(errors.ap[0]) == pytest.approx(1 / 3)
    costs = dict(zip(ORACLES, errors.cost.tolist()))
    assert costs["localisation"] == pytest.approx(1 - 1 / 3)
    assert costs["background"] == pytest.approx(1 / 2 - 1 / 3)
    assert costs["false positives"] == pytest.approx(1 - 1 / 3)
    assert costs["missed"] == costs["both"] == 0


def test_what_is_missed_stretches_the_curve():
    objects = [("a", "cat", BOX), ("b", "cat", BOX), ("a", "dog", FAR)]
    errors = analyse_errors(detection_set([("a", "cat", 0.9, BOX)]), truth_set(objects), "voc")
    # of the dogs nothing is left, and nothing found: they stay in the mean
    assert errors.fixed[ORACLES.index("missed")].tolist() == [1, 0]
    assert errors.cost[ORACLES.index("missed")] == pytest.approx((1 - 0.5) / 2)


def iou(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def average(rows: list[tuple[float, int, bool]], npos: int, metric: str) -> float:
    """AP of (score, tie, right)."""
    rows = sorted(rows, key=lambda row: (-row[0], row[1]))
    hits, recall, precision = 0, [], []
    for place, (_, _, right) in enumerate(rows, 1):
        hits += right
        recall.append(hits / max(npos, 1))
        precision.append(hits / place)
    if metric == "voc":
        return area(np.array(recall), np.array(precision))
    levels = np.arange(0, 1.05, 0.1) if metric == "voc07" else np.linspace(0, 1, 101)
    best = [max((p for r, p in zip(recall, precision) if r >= level), default=0.0) for level in levels]
    return sum(best) / len(best)


def kind_loops(found: DetectionSet, truth: TruthSet, right: list[bool], counts: list[bool]):
    """Section 2.2 of the paper as loops: detections, objects, states, and the objects that were meant.

    right, counts: of each detection, by the metric.
    """
    objects = list(zip(truth.boxes.tolist(), truth.labels.tolist(), truth.ignore.tolist(), truth.image.tolist()))
    rows = []
    for box, value, label, image in zip(
        found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), found.image.tolist()
    ):
        rows.append((box, value, truth.classes.index(found.classes[label]), truth.ids.index(found.ids[image])))
    states, meant = [], []
    for index, (box, _, label, image) in enumerate(rows):
        near = [(iou(box, o[0]) if o[3] == image and not o[2] and o[1] == label else 0.0) for o in objects]
        far = [(iou(box, o[0]) if o[3] == image and not o[2] and o[1] != label else 0.0) for o in objects]
        own, other = max(near, default=0.0), max(far, default=0.0)
        state, item = "both", None
        if not counts[index]:
            state = "ignored"
        elif right[index]:
            state = "right"
        elif 0.1 <= own < 0.5:
            state, item = "localisation", near.index(own)
        elif other >= 0.5:
            state, item = "class", far.index(other)
        elif own >= 0.5:
            state = "duplicate"
        elif max(own, other) <= 0.1:
            state = "background"
        states.append(state)
        meant.append(item)
    return rows, objects, states, meant


def oracle_loops(rows, objects, states, meant, taken, metric: str, classes: int) -> list[list[float]]:
    """Section 2.3: AP of each class as it is, then by each of ORACLES."""
    lost = {item for item in meant if item is not None}
    found = {taken[k] for k, state in enumerate(states) if state == "right"}
    missed = [k for k, o in enumerate(objects) if not o[2] and k not in lost and k not in found]
    table = []
    for fix in ("nothing", *ORACLES):
        npos = [sum(o[1] == c and not o[2] for o in objects) for c in range(classes)]
        none = [count == 0 for count in npos]
        if fix == "missed":
            for k in missed:
                npos[objects[k][1]] -= 1
        if fix == "false negatives":
            npos = [sum(objects[k][1] == c for k in found) for c in range(classes)]
        entries = []  # score, tie, class, right, object
        for k, (_, value, label, _) in enumerate(rows):
            state = states[k]
            if state == "right":
                entries.append((value, k, label, True, taken[k]))
            elif state == fix and fix in ("localisation", "class"):
                entries.append((value, k, objects[meant[k]][1], True, meant[k]))
            elif state not in (fix, "ignored") and fix != "false positives":
                entries.append((value, k, label, False, None))
        kept, claimed = [], set()
        for entry in sorted(entries, key=lambda entry: (-entry[0], entry[1])):
            if entry[4] is not None and entry[4] in claimed:
                continue
            claimed.add(entry[4])
            kept.append(entry)
        table.append(
            [
                math.nan if none[c] else average([(e[0], e[1], e[3]) for e in kept if e[2] == c], npos[c], metric)
                for c in range(classes)
            ]
        )
    return table


def voc_loops(found: DetectionSet, truth: TruthSet) -> tuple[list[bool], list[bool], list[int | None]]:
    """Right, counts and the object of each detection, by VOCevaldet.m."""
    count = len(found.labels)
    right, counts, taken = [False] * count, [True] * count, [None] * count
    used: set[int] = set()
    for k in sorted(range(count), key=lambda k: -float(found.scores[k])):
        name, image = found.classes[int(found.labels[k])], found.ids[int(found.image[k])]
        best, item = 0.0, None
        for g in range(len(truth.labels)):
            if truth.classes[int(truth.labels[g])] == name and truth.ids[int(truth.image[g])] == image:
                overlap = iou(found.boxes[k].tolist(), truth.boxes[g].tolist())
                if overlap > best:
                    best, item = overlap, g
        if item is not None and best >= 0.5:
            if bool(truth.ignore[item]):
                counts[k] = False
            elif item not in used:
                used.add(item)
                right[k], taken[k] = True, item
    return right, counts, taken


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("metric", ["voc07", "voc", "coco"])
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), pairs=st.sampled_from([1, 7, 1 << 17]))
def test_equals_the_paper_as_slow_loops(device: str, metric: str, seed: int, pairs: int):
    random = np.random.default_rng(seed)
    found, truth = random_sets(random)
    # no ties, which the metrics break in ways of their own
    found = replace(found, scores=torch.from_numpy(random.permutation(len(found.labels))).float())
    with pytest.MonkeyPatch.context() as patch, using(device):
        patch.setattr(flat, "PAIRS", pairs)
        errors = analyse_errors(found.to(device), truth.to(device), metric)
    count = len(found.labels)
    if metric == "coco":
        matches = coco_matches(found, truth)
        right, counts, taken = [False] * count, [False] * count, [None] * count
        for k, hit, real, item in zip(
            *(part.tolist() for part in (matches.order, matches.tp, matches.counted, matches.object))
        ):
            right[k], counts[k], taken[k] = hit, real, item if hit else None
    else:
        right, counts, taken = voc_loops(found, truth)
    rows, objects, states, meant = kind_loops(found, truth, right, counts)
    assert [STATES[state] for state in errors.state.tolist()] == states
    expected = oracle_loops(rows, objects, states, meant, taken, metric, len(truth.classes))
    got = torch.cat((errors.ap.unsqueeze(0), errors.fixed)).cpu()
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("metric", ["voc07", "voc", "coco"])
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_ap_is_that_of_the_metric_and_every_error_is_counted(metric: str, seed: int):
    found, truth = random_sets(np.random.default_rng(seed))
    errors, result = analyse_errors(found, truth, metric), score(found, truth, metric).curves
    torch.testing.assert_close(errors.ap, result.ap, rtol=0, atol=1e-12, equal_nan=True)
    assert int(errors.found.sum()) == int(result.found.sum())
    wrong = int(result.counted.sum() - result.found.sum())
    assert int(errors.counts[:-1].sum()) == wrong
    assert not (errors.found & errors.missed).any()
    # VOC's 11 levels see a stretched curve elsewhere; the area and 101 levels of it only gain
    assert metric == "voc07" or bool((errors.cost.nan_to_num() > -1e-9)[2:].all())


@pytest.mark.parametrize("metric", ["voc07", "voc", "coco"])
def test_nothing_at_all(metric: str):
    for rows, objects in [([], []), ([("a", "cat", 0.9, BOX)], []), ([], [("a", "cat", BOX)])]:
        found, truth = detection_set(rows), truth_set(objects)
        errors = analyse_errors(found, truth, metric)
        assert errors.counts.tolist() == [0, 0, 0, 0, len(rows), len(objects)]
        assert errors.cost.isnan().all() == (not objects)
        assert operating_score(errors, found.scores) == 0
        assert confusion_matrix(found, truth, 0).sum() == len(rows) + len(objects)
        assert object_groups(found, truth, metric)[0].objects == len(objects)
        errors.to_dict()
    with pytest.raises(UserError, match="is not finite"):
        analyse_errors(detection_set([("a", "cat", math.nan, BOX)]), truth_set([]), metric)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), stretch=st.sampled_from([1, 9, 40]))
def test_sizes_are_those_of_coco(seed: int, stretch: int):
    found, truth = random_sets(np.random.default_rng(seed))
    found, truth = replace(found, boxes=found.boxes * stretch), replace(truth, boxes=truth.boxes * stretch)
    result = coco_ap(found, truth)
    for index, group in enumerate(object_groups(found, truth, "coco")[:4]):
        assert group.objects == int(result.npos[index].sum())
        assert group.ap == pytest.approx(float(result.precision[index, 0].nanmean()), abs=1e-12, nan_ok=True)


def test_flags_of_objects():
    objects = [("a", "cat", BOX, True), ("a", "cat", FAR), ("b", "cat", BOX)]
    truth = replace(
        truth_set(objects),
        difficult=torch.tensor([True, False, False]),
        truncated=torch.tensor([False, True, False]),
    )
    rows = [("a", "cat", 0.9, BOX), ("a", "cat", 0.8, FAR), ("b", "dog", 0.7, FAR)]
    groups = {group.name: group for group in object_groups(detection_set(rows), truth, "voc")}
    assert {
        name: (group.objects, group.recall) for name, group in groups.items() if name not in ("medium", "large")
    } == {
        "all": (2, 0.5),
        "small": (2, 0.5),
        "truncated": (1, 1),
        "not truncated": (1, 0),
        "difficult": (1, 1),
    }
    assert math.isnan(groups["large"].ap)


def test_crowding_of_objects():
    """The largest IoU with another object: of any class, difficult ones too; with crowds and other images' not."""
    objects = [
        ("a", "cat", (0, 0, 10, 10)),
        ("a", "dog", (5, 0, 15, 10)),  # 1/3 with the first
        ("a", "cat", (14, 0, 24, 10), True),  # difficult, 1/19 with the second
        ("a", "cat", (100, 0, 110, 10)),
        ("b", "cat", (100, 0, 110, 10)),
        ("a", "cat", (95, 0, 115, 10), True),  # a crowd around the fourth
    ]
    truth = replace(truth_set(objects), difficult=torch.tensor([False, False, True, False, False, False]))
    expected = [1 / 3, 1 / 3, 1 / 19, 0, 0, 0]
    assert crowding(truth)[:5].tolist() == pytest.approx(expected[:5])
    # detections of the first and the third cat
    rows = [("a", "cat", 0.9, (0, 0, 10, 10)), ("b", "cat", 0.8, (100, 0, 110, 10))]
    groups = {group.name: group for group in object_groups(detection_set(rows), truth, "voc")}
    assert {name: (groups[name].objects, groups[name].recall) for name in ("alone", "overlapping", "crowded")} == {
        "alone": (2, 0.5),
        "overlapping": (0, pytest.approx(math.nan, nan_ok=True)),
        "crowded": (2, 0.5),
    }
    assert groups["crowded"].ap == 0.5  # of the cat 1, of the dog 0


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_crowding_equals_a_loop(seed: int):
    _, truth = random_sets(np.random.default_rng(seed))
    expected = []
    for one, box in enumerate(truth.boxes):
        others = [k for k in range(len(truth.boxes)) if k != one and truth.image[k] == truth.image[one]]
        others = [k for k in others if not truth.ignore[k]]
        expected.append(max([0.0, *(float(box_iou(box[None], truth.boxes[k][None])) for k in others)]))
    assert crowding(truth).tolist() == pytest.approx(expected, abs=1e-6)


def test_confusion():
    objects = [("a", "cat", BOX), ("a", "dog", FAR), ("b", "dog", BOX), ("b", "cat", FAR, True)]
    rows = [
        ("a", "cat", 0.9, BOX),
        ("a", "dog", 0.8, BOX),  # the cat is taken
        ("a", "cat", 0.7, FAR),
        ("a", "cat", 0.1, (50, 50, 60, 59)),
        ("b", "dog", 0.6, FAR),  # difficult
        ("b", "cat", 0.6, (80, 80, 90, 90)),
    ]
    found = detection_set(rows, classes=("dog", "cat"))
    expected = [[1, 0, 0], [1, 0, 1], [1, 1, 0]]
    assert confusion_matrix(found, truth_set(objects), 0.5).tolist() == expected
    expected[2][0] += 1
    assert confusion_matrix(found, truth_set(objects), 0).tolist() == expected


def test_no_score_lies_inside_a_tie():
    objects = [("a", "cat", BOX), ("b", "cat", BOX)]
    tie = [("b", "cat", 0.5, BOX), ("b", "cat", 0.5, FAR), ("a", "cat", 0.5, FAR), ("a", "dog", 0.5, FAR)]
    found = detection_set([("a", "cat", 0.9, BOX), *tie])
    # F1 = 2/3 at .9, 4/7 at .5; it were 1 after the true positive alone, the first of the tie
    assert operating_score(analyse_errors(found, truth_set(objects), "voc"), found.scores) == pytest.approx(0.9)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_score_of_best_f1_equals_a_loop(seed: int):
    found, truth = random_sets(np.random.default_rng(seed))
    errors = analyse_errors(found, truth, "voc")
    rows = [(s, STATES[k]) for s, k in zip(found.scores.tolist(), errors.state.tolist()) if STATES[k] != "ignored"]
    objects = int((~truth.ignore).sum())
    best, wanted = 0.0, 0.0
    for threshold in sorted({value for value, _ in rows}, reverse=True):
        kept = [state for value, state in rows if value >= threshold]
        f1 = 2 * kept.count("right") / (len(kept) + objects)
        if f1 > best:
            best, wanted = f1, threshold
    assert operating_score(errors, found.scores) == wanted


def test_the_score_of_best_f1():
    objects = [("a", "cat", BOX), ("b", "cat", BOX), ("a", "dog", FAR)]
    rows = [("a", "cat", 0.9, BOX), ("b", "dog", 0.8, FAR), ("b", "cat", 0.8, BOX), ("b", "dog", 0.3, BOX)]
    found = detection_set(rows)
    # F1 = 2/4 at .9, 4/6 at .8 (a tie stays together), 4/7 at .3
    assert operating_score(analyse_errors(found, truth_set(objects), "voc"), found.scores) == pytest.approx(0.8)


@settings(max_examples=50)
@given(rows=st.lists(st.tuples(st.sampled_from([0.0, 0.05, 0.1, 0.5, 0.99, 1.0]), st.booleans())))
def test_calibration_equals_loops(rows):
    result = calibrate(torch.tensor([row[0] for row in rows]).float(), torch.tensor([row[1] for row in rows]).bool())
    assert result is not None
    error = 0.0
    for place in range(10):
        inside = [row for row in rows if place <= min(int(np.float32(row[0]) * 10), 9) < place + 1]
        assert int(result.count[place]) == len(inside)
        if inside:
            gap = sum(float(np.float32(row[0])) - row[1] for row in inside) / len(inside)
            error += abs(gap) * len(inside) / len(rows)
    assert result.error == pytest.approx(error if rows else math.nan, nan_ok=True)


def test_margins_are_no_probabilities():
    assert calibrate(torch.tensor([-0.1, 0.5]), torch.tensor([True, False])) is None
    assert calibrate(torch.tensor([1.5]), torch.tensor([True])) is None
    assert histogram(torch.tensor([0.0, 0.04, 0.05, 1.0])).tolist() == [2, 1, *[0] * 17, 1]
