"""The plots of a page: what they draw, read back from the SVG."""

import re

import numpy as np
import pytest

from detkit.evaluation import VOCResult, voc_ap
from detkit.report.plots import pr_comparison, pr_plot, speed_plot
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


def test_precision_and_recall_of_several_detectors():
    results = {"one": result_of(cats="10110", dogs="0101"), "two": result_of(cats="011", dogs="1111")}
    plot = Plot(pr_comparison(results))
    assert [line.get("data-class") for line in plot.lines] == ["mean", "1", "2"] * 2
    for place, (name, result) in enumerate(results.items()):
        mean, *classes = plot.lines[3 * place : 3 * place + 3]
        drawn = plot.points(mean)
        levels = np.linspace(0, 1, 101)
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
