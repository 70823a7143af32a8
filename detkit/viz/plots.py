"""Loss curves, precision and recall."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detkit.viz.draw import INK, PALETTE, colour
from detkit.viz.figure import hex_code, new_figure, save, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from detkit.evaluation import VOCResult


def loss_plot(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw a training log: the loss and its parts, mAP where it was measured, and the learning rate.

    records: those of log.jsonl, in order. Each has `iteration`; those of training have `loss`, then its parts, then
    `lr`; those of an evaluation have `mAP`, null where there was nothing to find.
    """
    training = [record for record in records if "loss" in record]
    measured = [record for record in records if record.get("mAP") is not None]
    figure = new_figure(9, 7 if measured else 5.5)
    ratios = [3, 2, 1] if measured else [3, 1]
    panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    where = [record["iteration"] for record in training]

    top = panels[0]
    for index, key in enumerate(["loss", *_parts(training)] if training else []):
        values = np.array([record.get(key, np.nan) for record in training], np.float64)
        shade = "#222222" if key == "loss" else hex_code(colour(index - 1))
        top.plot(where, values, color=shade, alpha=0.25, linewidth=0.8)
        top.plot(where, _smooth(values), color=shade, linewidth=2 if key == "loss" else 1.5, label=key)
    positive = [record["loss"] for record in training if record["loss"] > 0]
    if positive and max(positive) > 20 * min(positive):
        top.set_yscale("log")
    top.set_ylabel("loss")
    if training:
        top.legend(loc="upper right", edgecolor="none")

    if measured:
        points = [record["iteration"] for record in measured]
        values = [record["mAP"] for record in measured]
        panels[1].plot(points, values, "o-", color=hex_code(colour(1)), markersize=4)
        panels[1].annotate(
            f"{values[-1]:.3f}", (points[-1], values[-1]), (0, 6), textcoords="offset points", ha="right"
        )
        panels[1].set(ylabel="mAP", ylim=(0, 1.05))
    rates = [record["lr"] for record in training if "lr" in record]
    panels[-1].plot([record["iteration"] for record in training if "lr" in record], rates, color="#666666")
    panels[-1].set(ylabel="learning rate", xlabel="iteration", ylim=(0, 1.1 * max(rates, default=1.0)))
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    for panel in panels:
        tidy(panel)
    save(figure, path)


def pr_plot(result: "VOCResult", path: str | Path) -> None:
    """Draw precision against recall of all classes in one image, the best class first in its legend."""
    names = _by_ap(result)
    figure = new_figure(10, 6.5)
    axes = figure.add_subplot()
    for index in names:
        recall, precision = _envelope(result, index)
        style = ("-", "--", ":")[index // len(PALETTE) % 3]
        label = f"{result.classes[index]}  {float(result.ap[index]):.3f}"
        axes.plot(recall, precision, style, color=hex_code(colour(index)), linewidth=1.5, label=label)
    axes.set_title(f"mAP {result.mAP:.4f}\n{result.protocol}, {result.images} images", fontsize=10)
    _pr_axes(axes)
    if names:
        columns = math.ceil(len(names) / 30)
        axes.legend(
            loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8, ncols=columns, title="class  AP"
        )
    save(figure, path)


def pr_plots(result: "VOCResult", folder: str | Path) -> list[Path]:
    """Write `all.png` and one `<class>.png` for each class with objects into `folder`; return their paths.

    A class's image has the curve as measured, its envelope, the area or the 11 points that AP is taken from, and the
    scores at some of its points.
    """
    folder = Path(folder)
    paths = [folder / "all.png"]
    pr_plot(result, paths[0])
    for index in _by_ap(result):
        paths.append(folder / (re.sub(r"[^\w.+ -]", "_", result.classes[index]) + ".png"))
        _class_plot(result, index, paths[-1])
    return paths


def _class_plot(result: "VOCResult", index: int, path: Path) -> None:
    shade = hex_code(colour(index))
    recall, precision, scores = (part.double().cpu().numpy() for part in result.curve(index))
    figure = new_figure(6.5, 5)
    axes = figure.add_subplot()
    axes.plot(recall, precision, color=shade, alpha=0.45, linewidth=1, label="measured")
    steps, envelope = _envelope(result, index)
    axes.plot(steps, envelope, color=shade, linewidth=2, label="envelope")
    if result.metric == "voc07":
        levels = np.arange(11) * 0.1
        best = [max(precision[recall >= level], default=0.0) for level in levels]
        axes.plot(levels, best, "o", color=hex_code(INK), markersize=4, label="11 points")
    else:
        axes.fill_between(steps, envelope, color=shade, alpha=0.12)
    for threshold in (0.9, 0.7, 0.5, 0.3, 0.1):
        reached = int((scores >= threshold).sum())
        if 0 < reached < len(scores):
            spot = recall[reached - 1], precision[reached - 1]
            axes.plot(*spot, "s", color=shade, markersize=4)
            axes.annotate(f"score {threshold:g}", spot, (5, 4), textcoords="offset points", fontsize=7, color="#444444")
    ap, found, npos = (float(part[index]) for part in (result.ap, result.found, result.npos))
    title = f"{result.classes[index]}: AP {ap:.4f}, {found:.0f} of {npos:.0f} objects found"
    axes.set_title(f"{title}\n{result.protocol}", fontsize=9)
    _pr_axes(axes)
    axes.legend(loc="lower left", frameon=False, fontsize=8)
    save(figure, path)


def _by_ap(result: "VOCResult") -> list[int]:
    """Classes that have an AP, the best first."""
    values = result.ap.tolist()
    return sorted((index for index, ap in enumerate(values) if ap == ap), key=lambda index: -values[index])


def _envelope(result: "VOCResult", index: int) -> tuple[NDArray, NDArray]:
    """Corners of a class's precision envelope: the best precision at each recall or beyond, 0 where recall ends."""
    recall, precision, _ = (part.double().cpu().numpy() for part in result.curve(index))
    # recall only moves at true positives: between two of them the envelope is that of the right one
    rises = np.flatnonzero(np.diff(recall, prepend=0.0))
    recall, best = recall[rises], np.maximum.accumulate(precision[rises][::-1])[::-1]
    return np.repeat(np.append(0.0, recall), 2)[1:], np.append(np.repeat(best, 2), 0.0)


def _parts(training: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the parts of the loss: the keys between `loss` and `lr`."""
    keys = list(training[0]) if training else []
    return keys[keys.index("loss") + 1 : keys.index("lr")] if "lr" in keys else []


def _smooth(values: NDArray) -> NDArray:
    """Running mean over a fiftieth of the curve, with no lag at its ends."""
    span = max(1, len(values) // 50)
    kernel = np.ones(2 * span + 1)
    real = np.isfinite(values)
    total = np.convolve(np.where(real, values, 0.0), kernel, "full")[span : span + len(values)]
    weight = np.convolve(real.astype(float), kernel, "full")[span : span + len(values)]
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0)


def _pr_axes(axes: "Axes") -> None:
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
    tidy(axes)
