"""The end of a run whose loss is no longer a number."""

import json
from typing import NoReturn

import torch

from detkit.checkpoints import checkpoint
from detkit.engine.run import Run
from detkit.errors import UserError
from detkit.files import write_file
from detkit.models import SGD
from detkit.runtime import distributed
from detkit.structures import InputSpec


def stop_nonfinite(run: Run, stage: SGD, spec: InputSpec, bad: tuple[int, dict[str, float]] | None) -> NoReturn:
    """Save the batch behind a non-finite loss for inspection, and raise UserError with its images' ids.

    bad: iteration and loss parts, None where another process saw it. The batch is not kept for this: the loader's
    stream is addressed by the iteration, so it is read once more. Writes nonfinite.pt (images, boxes, labels, loss
    parts; a dict for torch.load) and nonfinite.json (the same without pixels).
    """
    if bad is None:
        raise UserError("the loss of another process is not finite, see its message")
    iteration, losses = bad
    images, targets = next(iter(run.batches(stage, spec, iteration, iteration + 1, workers=0)))
    rank = distributed.rank()
    path = run.folder / (f"nonfinite-{rank}.pt" if rank else "nonfinite.pt")
    content = {
        "iteration": iteration + 1,
        "losses": losses,
        "ids": list(images.ids),
        **{name: getattr(targets, name) for name in ("boxes", "labels", "ignore")},
    }
    readable = {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in content.items()}
    readable["losses"] = {name: str(value) for name, value in losses.items()}
    write_file(path.with_suffix(".json"), json.dumps(readable, indent=1) + "\n")
    checkpoint.write(path, {**content, "pixels": images.pixels})
    parts = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    raise UserError(
        f"step {iteration + 1}: the loss is not finite ({parts}); images {', '.join(images.ids)}; "
        f"batch saved in {path}; try a lower train.lr, train.warmup, train.clip, or train.amp=none"
    )
