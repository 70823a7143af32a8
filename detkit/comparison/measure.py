"""Everything that is measured of the detectors that are compared."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from detkit.comparison.detecting import BATCHES, IMAGES, detecting, load_best, method_of, proposing
from detkit.comparison.entries import Entry
from detkit.data.dataset import DetectionDataset
from detkit.engine.log import read_log
from detkit.errors import UserError
from detkit.evaluation import COCOResult, Result, coco_ap, read_detections, score, write_detections
from detkit.experiment import to_plain
from detkit.files import write_atomic
from detkit.inference.evaluate import Evaluation, evaluate
from detkit.runtime.device import choose_device, to_device
from detkit.runtime.race import Benchmark, Runner, Setting, race
from detkit.structures import DetectionSet

SEARCH_ROUNDS = 3  # of proposals, at most: they take seconds an image, and vary little

Progress = Callable[[int, int], None]


def evaluate_entry(
    entry: Entry, dataset: DetectionDataset, out: Path
) -> tuple[Result, DetectionSet, COCOResult | None]:
    """Score best.pt on the test split by its config's metric, and its masks, if it has any, as `detkit evaluate` does.

    The detections are kept in DIR/evaluations, and scored again where they are of the same weights, config and images.
    """
    folder = out / "evaluations"
    stamp, stored = folder / f"{entry.name}.json", folder / f"{entry.name}-detections.json"
    with open(entry.best, "rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    expected = json.dumps({"weights": weights, "config": to_plain(entry.config)}, indent=1) + "\n"
    if stored.is_file() and stamp.is_file() and stamp.read_bytes() == expected.encode():
        detections = read_detections(stored)
        if detections.ids == dataset.ids:
            masked = detections.masks is not None
            truth = dataset.ranked_truth(masks=masked)
            masks = coco_ap(detections, truth, masks=True) if masked else None
            return score(detections, truth, entry.config.evaluate.metric), detections, masks
    evaluation = _evaluate(entry, dataset)
    detections = evaluation.detections.to("cpu")
    stamp.unlink(missing_ok=True)  # the two belong together
    write_detections(stored, detections)
    write_atomic(stamp, expected)
    return evaluation.result, detections, evaluation.masks


def _evaluate(entry: Entry, dataset: DetectionDataset) -> Evaluation:
    config = entry.config
    detector = load_best(config, entry.best)
    device = choose_device(config.train.device)
    to_device(detector, device, config.train.channels_last)
    return evaluate(detector, dataset, config, device)


def speeds(entries: Sequence[Entry], setting: Setting, progress: Progress) -> list[dict[int, float]]:
    """Return images a second by images at once, of each entry: best of `setting.rounds`, in turn.

    progress: called with the rounds done and in all. Raises UserError where a detector fails.
    """
    found: list[dict[int, float]] = [{} for _ in entries]
    total = len(BATCHES) * setting.rounds
    for number, batch in enumerate(BATCHES):
        before = number * setting.rounds
        jobs = (partial(detecting, config=entry.config, best=entry.best, batch=batch) for entry in entries)
        runners = tuple(Runner(entry.name, job) for entry, job in zip(entries, jobs))
        timings = race(Benchmark(f"batch {batch}", runners), setting, lambda done, b=before: progress(b + done, total))
        for rates, timing in zip(found, timings):
            rates[batch] = IMAGES / timing.best
    return found


def proposal_seconds(
    entries: Sequence[Entry], dataset: DetectionDataset, setting: Setting, progress: Progress
) -> list[float | None]:
    """Return the seconds an image that each entry's proposals take, in one thread; None where it needs none, or where
    how they were made is not known."""
    methods = [method_of(entry.config, dataset) if entry.takes_proposals else None for entry in entries]
    known = {json.dumps(method): (entry, method) for entry, method in zip(entries, methods) if method is not None}
    if not known:
        return [None] * len(entries)
    runners = tuple(
        Runner(name, partial(proposing, config=entry.config, method=method, parameters=parameters))
        for name, (entry, (method, parameters)) in known.items()
    )
    setting = replace(setting, threads=1, rounds=min(setting.rounds, SEARCH_ROUNDS))
    timings = race(Benchmark("proposals", runners), setting, lambda done: progress(done, setting.rounds))
    seconds = {timing.name: timing.best / IMAGES for timing in timings}
    return [None if method is None else seconds[json.dumps(method)] for method in methods]


def training_log(folder: Path, batch: int) -> tuple[float | None, float | None]:
    """Return images a second in steps of SGD, and the seconds of these and of evaluations, by a run's log.jsonl.

    Both None where it has none. Stages without steps, such as R-CNN's SVMs, are not in it.
    """
    steps, images, stepping, evaluating = 0, 0, 0.0, 0.0
    try:
        records = read_log(folder / "log.jsonl")
    except UserError:
        records = []
    for record in records:
        if record.get("images_per_second"):
            count = (record["iteration"] - steps) * batch
            steps, images = record["iteration"], images + count
            stepping += count / record["images_per_second"]
        elif "seconds" in record:
            evaluating += record["seconds"]
    return (images / stepping, stepping + evaluating) if stepping else (None, None)
