"""The plots of a page: what they draw, read back from the SVG."""

import re
from itertools import combinations

import numpy as np
import pytest
import torch

from detkit.evaluation import VOCResult, voc_ap
from detkit.report.plots import histogram_plot, pr_comparison, pr_plot, speed_plot
from detkit.viz.curves import SpeedPoint
from detkit.viz.draw import hex_colour
from tests.evaluation.sets import detection_set, truth_set
from tests.report.svg import Plot, shade_of

BOX, FAR = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)
IDS, CLASSES = ("a", "b", "c", "d"), ("owl", "cat", "dog")
PIXEL = 1e-3  # of an axis; coordinates are rounded to a tenth of a pixel


def ranked(name: str, right: str) -> list:
    """Detections of one class, the best first: 1 for a true positive, 0 for a false one."""
    ids = iter(IDS)
    return [
        (next(ids), name, 1 - place / 10, BOX) if one == "1" else ("a", name, 1 - place / 10, FAR)
        for place, one in enumerate(right)
    ]


def result_of(cats: str, dogs: str) -> VOCResult:
    """Four cats, four dogs, and no owls."""
    truth = truth_set([(image, name, BOX) for image in IDS for name in ("cat", "dog")], IDS, CLASSES)
    return voc_ap(detection_set(ranked("cat", cats) + ranked("dog", dogs), IDS, CLASSES), truth, metric="voc")


def envelope(result: VOCResult, index: int, level: float) -> float:
    """Best precision at this recall or beyond, 0 where there is none."""
    recall, precision, _ = (part.numpy() for part in result.curve(index))
    return max(precision[recall >= level - 1e-9], default=0.0)


def check_envelope(drawn: np.ndarray, result: VOCResult, index: int) -> None:
    """Compare a curve with the envelope between its steps, which lie at quarters."""
    xs, ys = drawn.T
    assert (np.diff(xs) >= 0).all()
    assert xs[0] == pytest.approx(0, abs=PIXEL)
    assert ys[-1] == pytest.approx(0, abs=PIXEL)
    for level in (0.05, 0.2, 0.3, 0.45, 0.55, 0.7, 0.8, 0.95):
        assert np.interp(level, xs, ys) == pytest.approx(envelope(result, index, level), abs=PIXEL)


def test_precision_and_recall_of_each_class():
    result = result_of(cats="10110", dogs="0101")
    plot = Plot(pr_plot(result))
    assert [line.get("data-class") for line in plot.lines] == ["1", "2"]  # there are no owls
    for index, line in zip((1, 2), plot.lines):
        check_envelope(plot.points(line), result, index)
        assert shade_of(line) == hex_colour(index)
        assert line.findtext("title") == f"{CLASSES[index]}: AP {float(result.ap[index]):.3f}"


@pytest.mark.parametrize("metric", ["voc07", "voc"])
def test_ap_is_what_is_drawn(metric: str):
    """Also of more steps than a curve has points, and of many detections of nothing after them."""
    ids = tuple(map(str, range(500)))
    truth = truth_set([(name, "cat", BOX) for name in ids], ids, CLASSES)
    marks = "".join("1" + "0" * (k // 20) for k in range(400)) + "0" * 20000
    objects = iter(ids)
    found = [
        (next(objects), "cat", 1 - place / 40000, BOX) if mark == "1" else ("0", "cat", 1 - place / 40000, FAR)
        for place, mark in enumerate(marks)
    ]
    result = voc_ap(detection_set(found, ids, CLASSES), truth, metric=metric)
    (line,) = Plot(pr_plot(result)).lines
    xs, ys = Plot(pr_plot(result)).points(line).T
    assert len(xs) > 160
    if metric == "voc07":
        drawn = np.interp(np.arange(11) / 10, xs, ys).mean()
    else:
        drawn = np.trapezoid(ys, xs)
    assert drawn == pytest.approx(float(result.ap[1]), abs=3e-3)


def test_precision_and_recall_of_several_detectors():
    results = {"one": result_of(cats="10110", dogs="0101"), "two": result_of(cats="011", dogs="1111")}
    plot = Plot(pr_comparison(results))
    assert [line.get("data-class") for line in plot.lines] == ["mean", "1", "2"] * 2
    for place, (name, result) in enumerate(results.items()):
        mean, *classes = plot.lines[3 * place : 3 * place + 3]
        drawn = plot.points(mean)
        levels = np.linspace(0, 1, 201)
        np.testing.assert_allclose(drawn[:, 0], levels, atol=PIXEL)
        # at every level, also where a step is: a recall of exactly .25 is reached by the first true positive of four
        expected = [(envelope(result, 1, level) + envelope(result, 2, level)) / 2 for level in levels]
        np.testing.assert_allclose(drawn[:, 1], expected, atol=PIXEL)
        assert mean.findtext("title") == f"{name}: mAP {result.mAP:.3f}"
        for index, line in zip((1, 2), classes):
            check_envelope(plot.points(line), result, index)
            assert line.findtext("title") == f"{name}: AP {float(result.ap[index]):.3f}"
        assert {shade_of(line) for line in (mean, *classes)} == {hex_colour(place)}


@pytest.mark.parametrize("values", [(0.868, 0.987), (1.0, 1.0), (0.0, 0.02), (0.1, 0.99), (0.83, 0.91)], ids=str)
def test_no_map_above_1_is_on_the_axis(values: tuple[float, ...]) -> None:
    drawn = speed_plot([SpeedPoint(f"d{number}", value, 10.0 + number) for number, value in enumerate(values)])
    upright = [float(text) for text in re.findall(r'text-anchor="end">([\d.]+)</text>', drawn)]
    assert len(upright) >= 3
    assert 0 <= min(upright) <= min(values)
    assert max(values) <= max(upright) <= 1


@pytest.mark.parametrize(
    ("top", "log", "ticks"),
    [
        (1690, True, "0 1 10 100 1000"),
        (21, True, "0 1 2 5 10 20"),
        (1690, False, "0 500 1000 1500"),
        (31200, False, "0 10k 20k 30k"),
        (3, False, "0 1 2 3"),
        (1, False, "0 1"),
    ],
)
def test_ticks_are_round(top: int, log: bool, ticks: str):
    counts = torch.zeros(20, dtype=torch.int64)
    counts[3] = top
    drawn = histogram_plot({"right": counts}, "", "score", log=log)
    assert re.findall(r'text-anchor="end">(.*?)</text>', drawn) == ticks.split()
    assert re.findall(r'x="[\d.]+" y="292" text-anchor="middle">(.*?)</text>', drawn) == [
        "0",
        "0.2",
        "0.4",
        "0.6",
        "0.8",
        "1",
    ]


ELEVEN = (
    "rcnn .554 34, sppnet .285 67, fast_rcnn .431 92, faster_rcnn .605 79, yolov1 .514 318, ssd .718 250, "
    "rfcn .491 154, yolov2 .480 261, mask_rcnn .669 56, retinanet .625 145, yolov3 .680 264"
)


@pytest.mark.parametrize(
    "text",
    [ELEVEN, ", ".join(f"faster_rcnn-{number} .5 {10 + number / 9}" for number in range(9))],
    ids=["eleven detectors", "nine at one place"],
)
def test_names_cover_neither_each_other_nor_points(text: str):
    """Letters are at most of the size that narrow screens have; what is further off has a line to its point."""
    rows = [row.split() for row in text.split(", ")]
    drawn = speed_plot([SpeedPoint(name, float(mAP), float(speed)) for name, mAP, speed in rows])
    names = re.findall(r'class="name" x="([\d.]+)" y="([\d.]+)" text-anchor="middle">(.*?)<', drawn)
    marks = re.findall(r'class="mark".*?cx="([\d.]+)" cy="([\d.]+)" r="5"><title>(.*?):', drawn)
    lines = re.findall(r'class="leader" x1="([\d.]+)" y1="([\d.]+)"', drawn)
    assert len(names) == len(marks) == len(rows)
    boxes = {}
    for x, y, name in names:
        half = 9.5 / 2 * len(name)
        boxes[name] = (float(x) - half, float(y) - 13, float(x) + half, float(y) + 4)
    near = 0
    for x, y, name in marks:
        left, top, right, bottom = boxes[name]
        aside = max(left - float(x), 0, float(x) - right), max(top - float(y), 0, float(y) - bottom)
        near += max(aside) <= 12
        assert max(aside) <= 12 or (x, y) in lines
        boxes[f"mark {name}"] = float(x) - 5, float(y) - 5, float(x) + 5, float(y) + 5
    assert near >= (9 if text == ELEVEN else 1)
    for (name, a), (other, b) in combinations(boxes.items(), 2):
        both_marks = name.startswith("mark") and other.startswith("mark")
        assert both_marks or not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]), (name, other)
