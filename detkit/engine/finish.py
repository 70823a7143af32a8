"""The end of a training session: the best checkpoint on the test split, curves and pictures."""

import json

from detkit.engine import checkpoint
from detkit.engine.device import place
from detkit.engine.evaluate import evaluate
from detkit.engine.run import Run


def finish(run: Run) -> None:
    """Evaluate best.pt on the test split; write metrics.json, plots/ and samples/, print the table."""
    from rich.console import Console

    console = Console(quiet=not run.writes, highlight=False)
    if run.test is None:
        console.print(f"no data.test in the config: the weights are in {run.folder / 'best.pt'}", markup=False)
        return
    best = run.folder / "best.pt"
    detector, _ = checkpoint.load_detector(best)
    place(detector, run.device, run.config.train.channels_last)
    evaluation = evaluate(detector, run.test, run.config, run.device)
    if run.writes:
        metrics = evaluation.metrics(split="test", checkpoint=str(best))
        checkpoint.write_file(run.folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")
        console.print(f"{best} on {run.test.name}: mAP {metrics['mAP']}", markup=False)
