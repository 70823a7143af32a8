"""Loss curves, precision and recall: what is drawn, read back from matplotlib's figures."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from detkit import viz
from detkit.evaluation import VOCResult, voc_ap
from detkit.viz.curves import SpeedPoint, loss_names, precision_envelope, smooth
from tests.evaluation.sets import detection_set, truth_set


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Return the figures that are saved from now on, in order."""
    saved: list[Figure] = []
    original = Figure.savefig

    def savefig(figure: Figure, *arguments, **keys) -> None:
        saved.append(figure)
        original(figure, *arguments, **keys)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def lines_of(axes: Axes) -> dict[str, Line2D]:
    """Return lines by their labels, in order; those without one are left out."""
    return {str(line.get_label()): line for line in axes.lines if not str(line.get_label()).startswith("_")}


def points_of(line: Line2D) -> np.ndarray:
    """Return (2, N) float64: x and y of a line's points."""
    return np.asarray(line.get_xydata(), np.float64).T


def rgb(index: int) -> str:
    """Return the colour of a class as matplotlib names it."""
    return "#{:02x}{:02x}{:02x}".format(*viz.colour(index))


def training(count: int) -> list[dict]:
    return [
        {"iteration": k, "loss": 3 / k, "classification": 2 / k, "box": 1 / k, "lr": 0.01 / k, "images_per_second": 9.0}
        for k in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    "records",
    [
        [],
        training(1),
        [*training(300), {"iteration": 300, "mAP": 0.5, "metric": "voc07"}],
        [{"iteration": 5, "mAP": None}, {"iteration": 5, "mAP": 0.5}],
        [{"iteration": 1, "loss": math.nan, "lr": 0.1}, {"iteration": 2, "loss": 1.0, "lr": 0.1}],
    ],
)
def test_any_log_has_a_loss_plot(records: list[dict], figures: list[Figure], tmp_path: Path):
    viz.loss_plot(records, tmp_path / "plots" / "loss.png")
    with Image.open(tmp_path / "plots" / "loss.png") as image:
        assert image.width > 600
    top, *_, bottom = figures[0].axes
    losses = [record for record in records if "loss" in record]
    assert (len(top.lines) > 0) == (len(losses) > 0)
    if losses:
        measured, smoothed = top.lines[:2]
        expected = [(record["iteration"], record["loss"]) for record in losses]
        np.testing.assert_array_equal(points_of(measured).T, expected)
        assert smoothed.get_label() == "loss"
    np.testing.assert_array_equal(points_of(bottom.lines[0])[1], [record["lr"] for record in losses])


def test_a_loss_plot_shows_loss_map_and_learning_rate(figures: list[Figure], tmp_path: Path):
    records = training(100)
    for iteration, value in ((40, 0.2), (80, None), (100, 0.45)):
        records.insert(iteration, {"iteration": iteration, "mAP": value})
    viz.loss_plot(records, tmp_path / "loss.png")
    top, middle, bottom = figures[0].axes
    steps = np.arange(1, 101)
    assert list(lines_of(top)) == ["loss", "classification", "box"]
    measured, smoothed = top.lines[::2], top.lines[1::2]
    for key, share, line, mean in zip(lines_of(top), (3, 2, 1), measured, smoothed):
        np.testing.assert_allclose(points_of(line), [steps, share / steps])
        assert mean is lines_of(top)[key]
        xs, ys = points_of(mean)
        np.testing.assert_array_equal(xs, steps)
        assert ys[50] == pytest.approx(np.mean(share / steps[48:53]))  # two steps to each side
        assert mean.get_color() == line.get_color()
    assert [to_hex(line.get_color()) for line in smoothed[1:]] == [rgb(0), rgb(1)]
    assert top.get_yscale() == "log"
    # an evaluation without objects has no point
    (line,) = middle.lines
    np.testing.assert_array_equal(points_of(line), [[40, 100], [0.2, 0.45]])
    assert [text.get_text() for text in middle.texts] == ["0.450"]
    (line,) = bottom.lines
    np.testing.assert_allclose(points_of(line), [steps, 0.01 / steps])
    assert [axes.get_ylabel() for axes in (top, middle, bottom)] == ["loss", "mAP", "learning rate"]
    assert bottom.get_xlabel() == "iteration"


def test_parts_of_the_loss():
    assert loss_names(training(2)) == ["loss", "classification", "box"]
    assert loss_names([{"iteration": 1, "loss": 2.0}]) == ["loss"]
    assert loss_names([]) == []


def test_smoothing_has_no_lag_and_passes_over_gaps():
    np.testing.assert_allclose(smooth(np.full(200, 3.0)), 3)
    line = np.arange(200.0)
    np.testing.assert_allclose(smooth(line)[10:-10], line[10:-10])
    line[50] = np.nan
    assert np.isfinite(smooth(line)).all()
    np.testing.assert_array_equal(smooth(np.array([10.0, 2.0])), [10, 2])  # a fall of two points is not levelled


BOX = (0.0, 0.0, 10.0, 10.0)
CLASSES = ("cat", "dog/wolf", "owl", "emu")


def result_by(metric: str) -> VOCResult:
    """Dogs are found better than cats, owls not at all; there are no emus."""
    random = np.random.default_rng(0)
    ids = [str(k) for k in range(40)]
    objects = [(name, CLASSES[k % 3], BOX) for k, name in enumerate(ids)]
    rows = [(name, label, s, BOX) for (name, label, _), s in zip(objects, random.random(40)) if s > 0.3]
    rows += [(random.choice(ids), "cat", s, (30, 30, 40, 40)) for s in random.random(15)]
    rows = [row for row in rows if row[1] != "owl"]
    return voc_ap(detection_set(rows, ids, CLASSES), truth_set(objects, ids, CLASSES), metric=metric)


@pytest.fixture
def result() -> VOCResult:
    return result_by("voc")


def measured(result: VOCResult, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return recall, precision and scores of a class."""
    recall, precision, scores = (part.double().numpy() for part in result.curve(index))
    return recall, precision, scores


def check_envelope(line: Line2D, result: VOCResult, index: int) -> None:
    """Compare a line with the best precision at each recall or beyond, between steps."""
    recall, precision, _ = measured(result, index)
    xs, ys = points_of(line)
    npos = int(result.npos[index])
    for level in (np.arange(npos) + 0.5) / npos:
        expected = max(precision[recall >= level], default=0.0)
        assert np.interp(level, xs, ys) == pytest.approx(expected)


def test_the_envelope_encloses_ap(result: VOCResult):
    for index in range(3):
        recall, precision = precision_envelope(result, index)
        assert (np.diff(recall) >= 0).all()
        assert (np.diff(precision) <= 0).all()
        assert precision[-1] == 0
        assert np.trapezoid(precision, recall) == pytest.approx(float(result.ap[index]))


def test_all_classes_in_one_plot(result: VOCResult, figures: list[Figure], tmp_path: Path):
    viz.pr_plot(result, tmp_path / "all.png")
    (axes,) = figures[0].axes
    cat, dog, owl, _ = result.ap.tolist()
    assert dog > cat > owl == 0
    # the best first; without objects there is no curve
    lines = lines_of(axes)
    assert list(lines) == [f"dog/wolf  {dog:.3f}", f"cat  {cat:.3f}", "owl  0.000"]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(lines)
    for index, line in zip((1, 0, 2), lines.values()):
        check_envelope(line, result, index)
        assert to_hex(line.get_color()) == rgb(index)  # that of the class, whatever its rank
    assert axes.get_title().startswith(f"mAP {result.mAP:.4f}\n")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recall", "precision")


@pytest.mark.parametrize("metric", ["voc", "voc07"])
def test_a_plot_for_each_class(metric: str, figures: list[Figure], tmp_path: Path):
    result = result_by(metric)
    paths = viz.pr_plots(result, tmp_path / "pr")
    # a class without objects has no curve; a class that was never found has an empty one
    assert [path.name for path in paths] == ["all.png", "dog_wolf.png", "cat.png", "owl.png"]
    for path in paths:
        with Image.open(path) as image:
            image.verify()
    for index, figure in zip((1, 0, 2), figures[1:]):
        (axes,) = figure.axes
        lines = lines_of(axes)
        recall, precision, scores = measured(result, index)
        np.testing.assert_array_equal(points_of(lines["measured"]), [recall, precision])
        check_envelope(lines["envelope"], result, index)
        assert {to_hex(lines[name].get_color()) for name in ("measured", "envelope")} == {rgb(index)}
        assert axes.get_title().startswith(f"{CLASSES[index]}: AP {float(result.ap[index]):.4f}")
        # AP is what is drawn: the mean of 11 points, or the area below the envelope
        if metric == "voc07":
            xs, ys = points_of(lines["11 points"])
            np.testing.assert_allclose(xs, np.arange(11) / 10)
            assert np.mean(ys) == pytest.approx(float(result.ap[index]))
        else:
            assert len(axes.collections) == 1
        # each score stands where detections of at least this score end
        for text in axes.texts:
            kept = int((scores >= float(text.get_text().removeprefix("score "))).sum())
            assert text.xy == (recall[kept - 1], precision[kept - 1])  # pyright: ignore[reportAttributeAccessIssue]
    assert [text.get_text() for text in figures[1].axes[0].texts] == ["score 0.7", "score 0.5"]


def test_no_classes_at_all(figures: list[Figure], tmp_path: Path):
    viz.pr_plot(voc_ap(detection_set([]), truth_set([])), tmp_path / "none.png")
    (axes,) = figures[0].axes
    assert len(axes.lines) == 0
    assert (tmp_path / "none.png").is_file()


def test_without_pyplot_and_without_matplotlib_until_it_is_needed(tmp_path: Path):
    script = (
        "import sys, detkit.viz as viz; assert not {'matplotlib', 'PIL', 'torch'} & set(sys.modules); "
        "viz.loss_plot([], sys.argv[1]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "loss.png")], check=True)


def test_names_of_a_speed_plot_cover_neither_each_other_nor_marks(figures: list[Figure], tmp_path: Path) -> None:
    points = [SpeedPoint(f"detector {number}", 0.5 + number % 2 / 500, 50.0 + number) for number in range(4)]
    viz.speed_plot([*points, SpeedPoint("another", 0.1, 5.0)], tmp_path / "speed.png", "title")
    (axes,) = figures[0].axes
    names = [text for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in names]
    assert len(boxes) == 5
    lines = {text.xy for text in axes.texts if not text.get_text()}
    assert lines == {text.xy for text in names if text.get_position()[1] not in (9, -17)} != set(), (
        "to those further off"
    )
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    marks = [axes.transData.transform((point.speed, point.mAP)) for point in points]
    assert not any(box.contains(*mark) for box in boxes for mark in marks)
