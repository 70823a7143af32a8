"""The end of a training session: the best checkpoint on the test split, curves and images."""

import json
from pathlib import Path

import torch
from rich.console import Console

from detkit.checkpoints import checkpoint
from detkit.data.dataset import DetectionDataset
from detkit.engine.log import read_log
from detkit.engine.run import Run
from detkit.errors import UserError
from detkit.evaluation import per_class_table
from detkit.files import save_atomic, write_file
from detkit.inference.evaluate import evaluate
from detkit.report import write_report
from detkit.runtime.device import to_device
from detkit.structures import DetectionSet
from detkit.viz import draw_pair, loss_plot, pr_plot

SAMPLES = 12  # images in samples/
SAMPLE_SCORE = 0.3  # threshold of the detections that are drawn in them


def finish(run: Run) -> None:
    """Evaluate best.pt on the test split; print the table, write metrics.json, report.html, plots/ and samples/.

    The report takes seconds at most.
    """
    try:
        conclude(run)
    except OSError as error:
        raise UserError(
            f"{run.folder}: {error.strerror or error}, in writing plots and samples; the weights are saved, "
            f"--resume {run.folder} repeats what is missing"
        ) from None


def conclude(run: Run) -> None:
    """See `finish`."""
    best = run.folder / "best.pt"
    records = []
    if run.writes:
        records = read_log(run.folder / "log.jsonl")
        loss_plot(records, run.folder / "plots" / "loss.png")
    if run.test is None:
        run.say(f"{best} is not tested, since data.test is empty")
        return
    detector, _ = checkpoint.load_detector(best)
    to_device(detector, run.device, run.config.train.channels_last)
    evaluation = evaluate(detector, run.test, run.config, run.device)
    if run.writes:
        protocol = {"split": "test", "dataset": run.test.name, "checkpoint": str(best)}
        metrics = evaluation.metrics(**protocol)
        write_file(run.folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        Console(highlight=False).print(per_class_table(evaluation.result, split=run.test.name, source=str(best)))
        pr_plot(evaluation.result.curves, run.folder / "plots" / "pr.png")
        save_samples(run.test, evaluation.detections, run.folder / "samples")
        scored = evaluation.result, evaluation.detections, run.test.truth()
        write_report(run.folder, *scored, run.test, protocol=protocol, records=records)
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
        path = folder / f"{record.id.replace('/', '_')}.jpg"
        save_atomic(path, lambda temporary, image=image: image.save(temporary, quality=90))
