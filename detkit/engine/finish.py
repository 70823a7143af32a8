"""The end of a training session: the best checkpoint on the test split, curves and images."""

import json
from pathlib import Path

import torch
from rich.console import Console

from detkit.checkpoints import checkpoint
from detkit.data.dataset import DetectionDataset
from detkit.engine.log import read_log
from detkit.engine.run import Run
from detkit.errors import Attempt, late
from detkit.evaluation import best_scores, per_class_table
from detkit.files import save_atomic, write_file
from detkit.inference.evaluate import Evaluation, evaluate
from detkit.inference.fast import Fast
from detkit.models import Thresholds
from detkit.names import LONGEST, fit_name, plain_name
from detkit.report import write_report
from detkit.runtime.device import to_device
from detkit.structures import DetectionSet
from detkit.viz import draw_pair, loss_plot, pr_plot

SAMPLES = 12  # images in samples/
SAMPLE_SCORE = 0.3  # threshold of the detections that are drawn in them


def finish(run: Run) -> None:
    """Evaluate best.pt on the test split; print the table, write metrics.json, report.html, plots/ and samples/.

    The report takes seconds at most. Raises Incomplete where all but pictures or the report is written.
    """
    best = run.folder / "best.pt"
    evaluation = None
    if run.test is not None:
        detector, _ = checkpoint.load_detector(best)
        to_device(detector, run.device, run.config.train.channels_last)
        with Fast.lent(detector):
            evaluation = evaluate(detector, run.test, run.config, run.device)
    if not run.writes:
        return
    thresholds = keep_thresholds(run, best, evaluation)
    with late() as attempt:
        if run.test is not None and evaluation is not None:
            conclude(run, run.test, evaluation, attempt, thresholds)
        else:
            run.say(f"{best} is not tested, since data.test is empty")
            with attempt("plots/loss.png"):
                loss_plot(read_log(run.folder / "log.jsonl"), run.folder / "plots" / "loss.png")


def keep_thresholds(run: Run, best: Path, evaluation: Evaluation | None) -> str:
    """Return a line on the thresholds in best.pt; those of the test split are written to it where there is no val."""
    content = checkpoint.load(best)
    if run.val is None and evaluation is not None:
        scores = best_scores(evaluation.result, run.config.detect.score_threshold)
        content["best_scores"] = Thresholds("test", scores)._asdict()
        checkpoint.write(best, content)
    thresholds = checkpoint.thresholds_of(content)
    return "" if thresholds is None else f"--score best: {thresholds}"


def conclude(run: Run, test: DetectionDataset, evaluation: Evaluation, attempt: Attempt, thresholds: str) -> None:
    """Show and write what an evaluation on the test split says, the numbers first. thresholds: a line on them."""
    best = run.folder / "best.pt"
    protocol = {"split": "test", "dataset": test.name, "checkpoint": str(best)}
    try:
        metrics = evaluation.metrics(**protocol)
        write_file(run.folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    finally:  # a full disk costs the file, and not what the screen shows
        Console(highlight=False).print(
            per_class_table(evaluation.result, split=test.name, source=str(best), masks=evaluation.masks)
        )
    records = []
    with attempt("plots"):
        records = read_log(run.folder / "log.jsonl")
        loss_plot(records, run.folder / "plots" / "loss.png")
        pr_plot(evaluation.result.curves, run.folder / "plots" / "pr.png")
    with attempt("samples"):
        save_samples(test, evaluation.detections, run.folder / "samples")
    with attempt("report.html"):
        scored = evaluation.result, evaluation.detections, test.truth()
        write_report(run.folder, *scored, test, protocol=protocol, records=records)
    run.say(thresholds)
    run.say(f"{run.folder}: best.pt, last.pt, metrics.json, log.jsonl, report.html, plots/, samples/")


def save_samples(dataset: DetectionDataset, detections: DetectionSet, folder: Path) -> None:
    """Write SAMPLES images, spread over the data set, of the ground truth beside the detections."""
    from PIL import Image

    count = min(SAMPLES, len(dataset))
    for index in torch.linspace(0, len(dataset) - 1, count).round().int().tolist():
        record = dataset.record(index)
        truth = {name: getattr(record.annotations, name) for name in ("boxes", "labels", "ignore")}
        shown = (detections.image == index) & (detections.scores >= SAMPLE_SCORE)
        predicted = {name: getattr(detections, name)[shown] for name in ("boxes", "labels", "scores")}
        image = Image.fromarray(draw_pair(dataset.image(index), truth, predicted, dataset.classes))
        path = folder / f"{fit_name(plain_name(record.id.replace('/', '_')), LONGEST - 4)}.jpg"
        save_atomic(path, lambda temporary, image=image: image.save(temporary, quality=90))
