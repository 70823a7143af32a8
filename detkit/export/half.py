"""A checkpoint at half its size."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detkit.checkpoints import checkpoint
from detkit.errors import UserError


def export_half(path: str | Path, out: str | Path) -> tuple[int, int]:
    """Write checkpoint `path` to `out` for detecting, its weights in half precision; return its bytes before and after.

    Norms and biases, which are few, stay float32, and what only a resume needs is left out. Readers turn the weights
    into float32 again, and compute in what their own machine is fast in (`train.amp: auto`). Raises UserError, in one
    line, where `out` exists already, or a weight is beyond half precision.
    """
    path, out = Path(path), Path(out)
    if out.exists():
        raise UserError(f"{out} exists already; give a new file")
    content = checkpoint.load(path)
    weights = {name: _half(path, name, tensor) for name, tensor in content["model"].items()}
    config = content["config"]
    config = {**config, "train": {**config["train"], "amp": "auto"}}
    small: dict[str, Any] = {**content, "model": weights, "config": config}
    small.pop("training", None)
    checkpoint.write(out, small)
    return sum(tensor.nbytes for tensor in content["model"].values()), out.stat().st_size


def _half(path: Path, name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float32 or tensor.ndim < 2:
        return tensor
    half = tensor.half()
    if not half.isfinite().all():
        raise UserError(f"{path}: {name} has values beyond half precision, whose largest is 65504")
    return half
