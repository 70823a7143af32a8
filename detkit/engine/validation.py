"""Evaluation on val during training, and the choice of best.pt."""

from detkit.engine.log import Log
from detkit.engine.run import Run
from detkit.inference.evaluate import evaluate
from detkit.models import Detector


def validate(detector: Detector, run: Run, iteration: int, log: Log) -> None:
    """Evaluate on val and keep the best as best.pt; without val, or objects in it, the latest is best.pt."""
    better = True
    if run.val is not None:
        evaluation = evaluate(detector, run.val, run.config, run.device)
        run.metrics = {"iteration": iteration, "stage": run.stage, **evaluation.metrics(split="val")}
        value = run.metrics["mAP"]
        better = run.best is None or (value is not None and value > run.best)
        run.best = value if better else run.best
        log.evaluation(iteration, run.metrics, better and value is not None)
    if better:
        run.save_best(detector, iteration)


def conclude(detector: Detector, run: Run) -> None:
    """Evaluate and keep what a stage without steps made.

    It becomes best.pt whatever earlier stages reached: those only lead to it.
    """
    iterations = run.before
    run.best = None
    with Log(run.folder, iterations, iterations, writes=run.writes) as log:
        validate(detector, run, iterations, log)
    run.save_last(detector, {"finished": True})
