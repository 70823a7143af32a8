"""Layers that stay as they are must not be random."""

from pathlib import Path

import pytest
import torch

from detkit.cli import run_command
from detkit.engine.session import check_frozen
from detkit.errors import UserError
from detkit.experiment import load_config
from detkit.models import build_detector
from tests import zoo

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = """
model: {{name: faster_rcnn, backbone: {{name: tiny}}, size: [64, 64], freeze_stages: 2, pool_size: 2}}
data: {{root: {root}, train: [train], val: [], test: []}}
train: {{iterations: 1, batch: 2, workers: 0, device: cpu}}
"""


def test_random_layers_are_frozen_only_with_weights(
    toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a checkpoint are as good as those of a file for the backbone, and a resume needs neither."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE.format(root=toys))
    assert run_command("train", ["recipe.yaml", "--out", "random"]) == 2
    expected = (
        "error: model.backbone.weights: null, but layers of tiny are frozen and would stay random; "
        "name weights, or train all layers: model.freeze_stages=0\n"
    )
    assert capsys.readouterr().err == expected
    assert not Path("random").exists()
    assert run_command("train", ["recipe.yaml", "model.freeze_stages=0", "--out", "whole"]) == 0
    assert run_command("train", ["recipe.yaml", "train.weights=whole/last.pt", "--out", "started"]) == 0
    assert run_command("train", ["--resume", "started"]) == 0


def test_sppnet_names_its_own_key() -> None:
    detector = zoo.build("sppnet", frozen=True)
    with pytest.raises(UserError, match=r"or train all layers: model\.frozen=false$"):
        check_frozen(detector, detector.config)
    free = zoo.build("sppnet")
    check_frozen(free, free.config)


def test_a_published_recipe_without_its_weights_is_refused() -> None:
    changes = ["data.root=somewhere", "model.backbone.weights=null"]
    config = load_config(CONFIGS / "voc" / "sppnet_zf.yaml", changes)
    with torch.device("meta"):
        detector = build_detector(config.model, ("a",))
    with pytest.raises(UserError, match=r"^model\.backbone\.weights: null, but layers of zfnet are frozen"):
        check_frozen(detector, config.model)


def test_frozen_batch_norms_alone_are_no_fault() -> None:
    detector = zoo.build("fast_rcnn", freeze_norms=True)
    check_frozen(detector, detector.config)
