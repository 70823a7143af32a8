"""The optimiser step: what the `train` section says is what is done to the weights."""

from pathlib import Path

import pytest
import torch

from detkit.checkpoints import checkpoint
from detkit.experiment import load_config
from detkit.models import build_detector
from tests.engine.reference import descend
from tests.toys.fixtures import Train
from tests.toys.toy import CLASSES

SHORT = ("data.val=[]", "data.test=[]", "model.norm=true", "train.iterations=6")


@pytest.mark.parametrize(
    "changes",
    [
        ("train.clip=0.5",),
        (
            *("train.bias_lr=2", "train.backbone_lr=0.5", "train.class_lr=3"),
            *("train.weight_decay=0.1", "train.bias_decay=0.2"),
        ),
        ("train.ema=0.3",),
        ("train.amp=bf16", "train.channels_last=false"),
        ("train.amp=fp16", "train.clip=0.5", "train.ema=0.9"),
        ("train.optimizer=adamw", "train.lr=0.01", "train.accumulate=2"),
    ],
    ids=["clip", "factors", "ema", "bf16", "fp16", "adamw"],
)
def test_the_steps_are_those_of_the_plain_loop(
    changes: tuple[str, ...], train: Train, config: Path, tmp_path: Path
) -> None:
    assert train(*SHORT, *changes, "--out", tmp_path / "run") == 0
    expected = descend(load_config(config, [*SHORT, *changes]))
    last, best = (checkpoint.load(tmp_path / "run" / name) for name in ("last.pt", "best.pt"))
    torch.testing.assert_close(last["training"]["weights"], expected.weights, rtol=1e-4, atol=1e-6)
    inference = expected.weights if expected.average is None else expected.average
    torch.testing.assert_close(last["model"], inference, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(best["model"], inference, rtol=1e-4, atol=1e-6)
    assert last["training"]["scaler"].get("scale", 1.0) == expected.loss_scale


def test_clipping_limits_the_norm_over_all_parameters(train: Train, config: Path, tmp_path: Path) -> None:
    one_step = ("train.iterations=1", "train.warmup=0", "train.lr=0.1", "train.weight_decay=0", "train.clip=0.01")
    folder = tmp_path / "run"
    assert train(*one_step, "data.val=[]", "data.test=[]", "--out", folder) == 0
    settings = load_config(config)
    torch.manual_seed(settings.train.seed)
    before = build_detector(settings.model, CLASSES).state_dict()
    after = checkpoint.load(folder / "last.pt")["model"]
    change = torch.cat([(after[name] - before[name]).flatten() for name in after])
    assert change.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)
