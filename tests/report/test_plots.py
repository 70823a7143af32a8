"""The plots of a page: what they draw, read back from the SVG."""

import re

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


def test_no_name_of_a_detector_covers_another():
    """Of many at one place, each keeps its own line; letters are at most of the size that narrow screens have."""
    drawn = speed_plot([SpeedPoint(f"faster_rcnn-{number}", 0.5, 10.0 + number / 9) for number in range(9)])
    places = re.findall(r'class="name" x="([\d.]+)" y="([\d.]+)"', drawn)
    heights = sorted(float(y) for _, y in places)
    assert len(heights) == 9
    assert min(np.diff(heights)) >= 17
