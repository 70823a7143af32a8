"""What plots show, as numbers: matplotlib draws them in images, a report as SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from detkit.evaluation.voc import VOCResult

RECALLS = np.linspace(0, 1, 201)  # at which curves are sampled; VOC's 11 and COCO's 101 are among them
MAP_STEPS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.25)  # between two ticks of a speed plot's mAP
SPEED_LABEL = "images/s, one at a time (logarithmic)"


def classes_by_ap(result: "VOCResult") -> list[int]:
    """Return the classes that have an AP, the best first."""
    values = result.ap.tolist()
    return sorted((index for index, ap in enumerate(values) if ap == ap), key=lambda index: -values[index])


def measured_curve(result: "VOCResult", index: int) -> tuple[NDArray, NDArray, NDArray]:
    """Return recall, precision and scores of one class, best score first, as float64 arrays."""
    recall, precision, scores = (part.double().cpu().numpy() for part in result.curve(index))
    return recall, precision, scores


def precision_envelope(result: "VOCResult", index: int, limit: int | None = None) -> tuple[NDArray, NDArray]:
    """Return recall and precision at the corners of a class's envelope: the best precision at each recall or beyond.

    It begins at recall 0 and ends at precision 0. limit: where it has more steps, its points are those at RECALLS.
    """
    recall, precision, _ = measured_curve(result, index)
    best = _best_from_here(precision)
    steps = np.flatnonzero(np.diff(recall, prepend=0.0))  # what is wrong reaches no further
    steps = steps[np.diff(best[steps], append=0.0) != 0]  # after these points it falls
    if limit is not None and len(steps) > limit:
        return RECALLS, _at_recalls(recall, best)
    xs = np.append(0.0, np.repeat(recall[steps], 2))
    ys = np.append(np.repeat(best[steps], 2), 0.0)
    return xs, ys


def mean_envelope(result: "VOCResult") -> tuple[NDArray, NDArray]:
    """Return RECALLS and the mean precision there of the envelopes of all classes that have an AP, at least one."""
    classes = classes_by_ap(result)
    total = np.zeros(len(RECALLS))
    for index in classes:
        recall, precision, _ = measured_curve(result, index)
        total += _at_recalls(recall, _best_from_here(precision))
    return RECALLS, total / len(classes)


def _at_recalls(recall: NDArray, best: NDArray) -> NDArray:
    """The envelope at RECALLS: the first point that reaches a recall has, of those from there on, the best precision.

    So its mean over VOC's 11 recalls is exact, and the area below it nearly: half a step of each fall is lost or won.
    """
    return np.append(best, 0.0)[np.searchsorted(recall, RECALLS - 1e-12)]


def _best_from_here(precision: NDArray) -> NDArray:
    return np.maximum.accumulate(precision[::-1])[::-1]


def thin(values: NDArray, limit: int) -> NDArray:
    """Return at most `limit` of an array, evenly spread, its ends among them."""
    if len(values) <= limit:
        return values
    return values[np.linspace(0, len(values) - 1, limit).round().astype(int)]


@dataclass(frozen=True)
class TrainingCurves:
    """What a training log says, as float64 arrays; NaN stands for what a record does not have.

    steps: (N,) iterations of training records; losses: the loss and its parts, (N,) each; rates: (N,) learning rates;
    speeds: (N,) images a second. evaluated: (E,) iterations of evaluations that have an mAP; mAP: (E,).
    """

    steps: NDArray
    losses: dict[str, NDArray]
    rates: NDArray
    speeds: NDArray
    evaluated: NDArray
    mAP: NDArray


def training_curves(records: Sequence[Mapping[str, Any]]) -> TrainingCurves:
    """Read the records of log.jsonl, in order.

    Each has `iteration`; those of training have `loss`, then its parts, then `lr`; those of an evaluation have `mAP`,
    null where there was nothing to find.
    """
    training = [record for record in records if "loss" in record]
    evaluations = [record for record in records if record.get("mAP") is not None]
    return TrainingCurves(
        steps=_column(training, "iteration"),
        losses={name: _column(training, name) for name in loss_names(training)},
        rates=_column(training, "lr"),
        speeds=_column(training, "images_per_second"),
        evaluated=_column(evaluations, "iteration"),
        mAP=_column(evaluations, "mAP"),
    )


def loss_names(training: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return `loss` and the names of its parts: the keys between `loss` and `lr`."""
    if not training:
        return []
    keys = list(training[0])
    return keys[keys.index("loss") : keys.index("lr")] if "lr" in keys else ["loss"]


def _column(records: Sequence[Mapping[str, Any]], key: str) -> NDArray:
    return np.array([record.get(key) for record in records], np.float64)  # None becomes NaN


def smooth(values: NDArray) -> NDArray:
    """Return the running mean over a fiftieth of a curve, with no lag at its ends; it passes over gaps (NaN) in that.

    A curve of few points is itself: the mean of two that fall would be level.
    """
    span = len(values) // 50
    kernel = np.ones(2 * span + 1)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), kernel, "full")[span : span + len(values)]
    weight = np.convolve(known.astype(float), kernel, "full")[span : span + len(values)]
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 0)


@dataclass(frozen=True)
class SpeedPoint:
    """One detector. speed: images a second; slower: with the making of its proposals, None where it has none."""

    name: str
    mAP: float
    speed: float
    slower: float | None = None


def speed_axes(points: Sequence[SpeedPoint]) -> tuple[tuple[float, float], list[float], tuple[float, float]]:
    """Return axes that hold all points, at least one, with some room around them.

    They are images a second from and to, round numbers between these, and mAP from and to, in four steps.
    """
    speeds = [speed for point in points for speed in (point.speed, point.slower) if speed is not None]
    low, high = math.log10(min(speeds)) - 0.15, math.log10(max(speeds)) + 0.15
    wider = max(0.0, 0.75 - (high - low)) / 2  # less than that power of ten would blow small differences up
    low, high = low - wider, high + wider
    values = [point.mAP for point in points]
    # four steps between round numbers, with some room at both ends
    first = {step: math.floor((min(values) - step / 4) / step) * step for step in MAP_STEPS}
    step = next((step for step in MAP_STEPS if first[step] + 3.75 * step >= max(values)), MAP_STEPS[-1])
    bottom = max(0.0, min(first[step], 1 - 4 * step))  # there is no mAP above 1
    return (10**low, 10**high), log_ticks(low, high), (bottom, bottom + 4 * step)


def round_ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return at most six round numbers from one to the other. whole: of things that are counted."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit > rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 of each power of ten between two of them; 1 alone where these were many."""
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in digits]
    return [tick for tick in ticks if low <= math.log10(tick) <= high]
